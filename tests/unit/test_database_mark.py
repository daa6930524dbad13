"""What servers and nodes remember of the database outside of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from novacron.agent.host.database_mark import RememberedMark
from novacron.model.database_mark import DatabaseMark
from novacron.server.database_watch import MarkFile

MARK = DatabaseMark("5e17", 41)


def test_a_server_reads_the_mark_that_it_wrote_last(tmp_path: Path) -> None:
    path = tmp_path / "database.mark"
    assert MarkFile(path).read() is None
    for number in (9, 10_000_000, 41):
        MarkFile(path).write(DatabaseMark("5e17", number))
    assert MarkFile(path).read() == MARK
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_copy_of_a_servers_mark_proves_nothing(tmp_path: Path) -> None:
    """It is put back together with the database that it would vouch for."""
    path = tmp_path / "database.mark"
    MarkFile(path).write(MARK)
    shutil.copy2(path, tmp_path / "copy")
    path.rename(tmp_path / "aside")
    (tmp_path / "copy").rename(path)
    assert MarkFile(path).read() is None


def test_a_mark_that_is_younger_than_it_says_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, at = tmp_path / "database.mark", tmp_path.stat().st_ctime
    monkeypatch.setattr("novacron.server.database_watch.time.time", lambda: at - 3600)
    MarkFile(path).write(MARK)
    assert MarkFile(path).read() is None


@pytest.mark.parametrize("damage", [b"", b"{}", b"\0" * 64, b"[" * 5000, b"\xff"])
def test_a_damaged_mark_is_none(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "database.mark"
    path.write_bytes(damage)
    assert MarkFile(path).read() is None
    assert RememberedMark(path).mark is None


def test_an_agent_remembers_the_last_mark_that_it_was_told(tmp_path: Path) -> None:
    path = tmp_path / "database.mark"
    remembered = RememberedMark(path)
    remembered.take(DatabaseMark("5e17" * 8, 2**53))
    remembered.take(MARK)
    remembered.take(None)
    assert remembered.mark == MARK == RememberedMark(path).mark
