"""State folders: one process at a time, and nobody's settings are overwritten."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from novacron.state_lock import FolderInUse, FolderLock


def test_a_folder_belongs_to_one_process_until_it_ends(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    lock = FolderLock(tmp_path / "state")
    with pytest.raises(FolderInUse, match=f"process {os.getpid()} already works with"):
        FolderLock(tmp_path / "state")
    lock.release()
    lock.release()
    FolderLock(tmp_path / "state").release()
    hold = "import sys; from pathlib import Path; from novacron.state_lock import FolderLock;"
    hold += "lock = FolderLock(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path / "state")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(FolderInUse) as refused:
            FolderLock(tmp_path / "state")
        assert refused.value.pid == other.pid
        other.kill()
    FolderLock(tmp_path / "state").release()


def test_children_do_not_inherit_a_lock(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as child:
        lock.release()
        FolderLock(tmp_path).release()
        child.kill()


def test_a_lock_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        FolderLock(tmp_path)
    assert not (tmp_path / "elsewhere").exists()
