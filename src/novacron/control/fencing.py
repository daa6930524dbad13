"""Runs the fence command: the operator's program that cuts a node off, given its name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from novacron import child_environment

FENCE_S_MAX = 30.0
FENCE_TRIES_MAX = 3
FENCE_PAUSE_S = 2.0
KILL_S_MAX = 2.0
"""How long a killed command is waited for: one that the kernel holds may never end."""
OUTPUT_BYTES_MAX = 200
"""Of its output, the end that an error quotes."""
READ_BYTES = 1 << 16
VARIABLES = "FENCE_"
"""Begins the environment variables that the command gets of the server's."""


class Fenced(NamedTuple):
    """What came of fencing a node."""

    cut_off: bool
    """The command says that the node is cut off."""
    error: str = ""
    """Why not, if it was tried."""


async def cut_off(program: Path, node: str) -> Fenced:
    """Run the fence command for a node, a few times if it fails."""
    error = None
    for tries in range(FENCE_TRIES_MAX):
        if tries:
            await asyncio.sleep(FENCE_PAUSE_S * tries)
        error = await _run(program, node)
        if error is None:
            return Fenced(cut_off=True)
    return Fenced(cut_off=False, error=str(error))


async def _run(program: Path, node: str) -> str | None:
    """Run the fence command once; return why it failed, None if it has not."""
    async with _output() as (descriptor, output):
        try:
            process = await asyncio.create_subprocess_exec(
                str(program), node, stdin=asyncio.subprocess.DEVNULL, stdout=descriptor,
                stderr=asyncio.subprocess.STDOUT, start_new_session=True,
                env=child_environment.clean(prefix=VARIABLES),
            )  # fmt: skip
        except OSError as error:
            return f"{program}: {error.strerror}"
        try:
            async with asyncio.timeout(FENCE_S_MAX):
                code = await process.wait()
        except TimeoutError:
            return f"{program} did not end within {FENCE_S_MAX:.0f} s"
        finally:
            await _kill(process)
    if code == 0:
        return None
    return f"{program} exited with {code}: {output.decode(errors='replace').strip()}"


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill a command that has not ended, with all that it has started."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KILL_S_MAX):
            await process.wait()


@contextlib.asynccontextmanager
async def _output() -> AsyncIterator[tuple[int, bytearray]]:
    """Give a descriptor to write to, and the end of what was written. Nobody waits until it is closed: what a command
    has started may keep it open for longer than the command runs."""
    loop, output = asyncio.get_running_loop(), bytearray()
    reads, writes = os.pipe()
    os.set_blocking(reads, False)

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(reads, READ_BYTES)
            if not data:
                loop.remove_reader(reads)
            output.extend(data)
            del output[:-OUTPUT_BYTES_MAX]

    loop.add_reader(reads, read)
    try:
        yield writes, output
        read()
    finally:
        loop.remove_reader(reads)
        os.close(writes)
        os.close(reads)
