"""Freeing the room in a repository that no snapshot uses any more: restic does it, and puts small files together."""

from __future__ import annotations

import asyncio
import contextlib
import shutil

from novacron import child_environment
from novacron.local.database_backup import BackupFailed, BackupPlace

PRUNE_S_MAX = 600.0
"""Nothing is stored meanwhile."""
END_S_MAX = 15.0
"""How long restic may take to give its lock up."""
OPTIONS = ("--max-unused", "10%", "--repack-small", "--max-repack-size", "1G")
WORDS_MAX = 500


async def prune(place: BackupPlace) -> None:
    """Let restic remove what no snapshot uses. Raises BackupFailed, OSError, TimeoutError."""
    if shutil.which("restic") is None:
        raise BackupFailed("there is no restic, which frees room in the repository: apt-get install restic")
    process = await asyncio.create_subprocess_exec(
        "setpriv", "--pdeathsig", "TERM", "--", "nice", "-n", "10", "restic", "--no-cache", "-q",
        "--repo", str(place.repository), "--password-file", str(place.password_file), "prune", *OPTIONS,
        env=child_environment.clean(), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(PRUNE_S_MAX):
            said, _ = await process.communicate()
    finally:
        await _end(process)
    if process.returncode != 0:
        raise BackupFailed(f"restic prune failed: {said.decode(errors='replace').strip()[-WORDS_MAX:]}")


async def _end(process: asyncio.subprocess.Process) -> None:
    for end in (process.terminate, process.kill):
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                end()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), END_S_MAX)
