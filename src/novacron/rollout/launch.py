"""Becomes a server after it has written its own process id: whoever starts it may be killed at any moment.

``python -m novacron.rollout.launch FILE PROGRAM ARGUMENT...``
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from novacron import private_file

BEGAN = 19
"""Field of /proc/PID/stat after the name (proc(5)): when the process began."""


def stat_of(pid: int) -> list[str]:
    """Return the fields of a process after its name. Raises OSError."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def main(file: Path, command: list[str]) -> None:
    private_file.write(file, f"{os.getpid()} {stat_of(os.getpid())[BEGAN]}\n".encode())
    os.execv(command[0], command)  # noqa: S606  # nosec B606 (the program is the installed version's Python)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
