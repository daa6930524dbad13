"""Another host than this one, as far as an agent can tell: with ids, processes and locks of its own.

``unshare ... python -m lab.another_host FOLDER COMMAND...`` runs a command on it; FOLDER is emptied for its ids and
what its agents share. Its network is the namespace in which it is started. It ends with the command, and with it all
that runs on it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
IDS = {
    "machine-id": Path("/etc/machine-id"),
    "product-uuid": Path("/sys/class/dmi/id/product_uuid"),
    "boot-id": Path("/proc/sys/kernel/random/boot_id"),
}
DIRECTORIES = {"run": Path("/run/novacron"), "netns": Path("/run/netns")}


def command(folder: Path, arguments: list[str]) -> list[str]:
    """Return the command line that runs ``arguments`` on the host whose folder this is."""
    return [*UNSHARE, sys.executable, "-m", "lab.another_host", str(folder), *arguments]


def become(folder: Path) -> None:
    """Let this process be on another host from now on; it has to be in namespaces of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, place in IDS.items():
        if place.exists():
            mine = folder / name
            mine.parent.mkdir(parents=True, exist_ok=True)
            mine.write_text(f"{uuid.uuid4().hex if name == 'machine-id' else uuid.uuid4()}\n")
            _show(mine, place)
    for name, place in DIRECTORIES.items():
        place.mkdir(parents=True, exist_ok=True)
        (folder / name).mkdir(parents=True)
        _show(folder / name, place)


def _show(mine: Path, place: Path) -> None:
    subprocess.run(["mount", "--bind", str(mine), str(place)], check=True, timeout=10)


if __name__ == "__main__":
    become(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 (the command that it was started for)
