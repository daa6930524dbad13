"""A VM's own layer of its disk: what it wrote, over the disk of its image, which stays as it is (qcow2)."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from novacron.disk.files import make_durable

IMG = "qemu-img"
TIMEOUT_S = 30.0
SAID_BYTES_MAX = 500


class OverlayFailed(Exception):
    """The layer could not be made: says why."""


async def create(path: Path, below: Path, size_bytes: int) -> None:
    """Make an empty layer at ``path`` over the raw disk ``below``, whole or not at all. Raises OverlayFailed."""
    scratch = path.with_suffix(".new")
    arguments = ("create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(below), str(scratch), str(size_bytes))
    try:
        process = await asyncio.create_subprocess_exec(
            IMG, *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        raise OverlayFailed(f"can't run {IMG}: {error}; install qemu-utils") from error
    try:
        async with asyncio.timeout(TIMEOUT_S):
            _, said = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise OverlayFailed(f"{IMG} failed: {said[-SAID_BYTES_MAX:].decode(errors='replace').strip()}")
    scratch.rename(path)
    await asyncio.to_thread(make_durable, path.parent)
