"""``qemu-img``, run on files that may be hostile: within limits, and under the caller's choice of user."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from novacron import child_environment

IMG = "qemu-img"
LOOK_S = 0.1
ERROR_BYTES_MAX = 500

Wrap = Callable[[list[str]], list[str]]
"""Makes a command one of another user's."""


class ImgFailed(Exception):
    """``qemu-img`` failed: says why. ``code`` is its exit status, or None if it was killed or not started."""

    def __init__(self, why: str, code: int | None = None) -> None:
        super().__init__(why)
        self.code = code


def unchanged(command: list[str]) -> list[str]:
    return command


class Invocation(NamedTuple):
    """As whom the tool runs, and with what."""

    wrap: Wrap = unchanged
    limits: Sequence[str] = ()
    """Options of prlimit(1)."""
    descriptors: Sequence[int] = ()
    """Files that it inherits."""
    directory: Path | None = None
    """Its working directory; this process's if None."""


async def run(
    arguments: Sequence[str], time_s_max: float, invocation: Invocation = Invocation(),
    stop_reason: Callable[[], str | None] | None = None,
) -> bytes:  # fmt: skip
    """Run the tool and return what it printed. ``stop_reason`` is asked every 0.1 s, in a thread: once it returns
    a reason, the tool is killed and the reason is the error. Raises ImgFailed."""
    command = [IMG, *arguments]
    if invocation.limits:
        command = ["prlimit", *invocation.limits, "--", *command]
    try:
        process = await asyncio.create_subprocess_exec(
            *invocation.wrap(command), pass_fds=invocation.descriptors, cwd=invocation.directory,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=child_environment.clean(),
        )  # fmt: skip
    except OSError as error:
        raise ImgFailed(f"can't run {IMG}: {error}; install qemu-utils") from error
    communication = asyncio.create_task(process.communicate())
    try:
        async with asyncio.timeout(time_s_max):
            while not communication.done():
                await asyncio.wait({communication}, timeout=LOOK_S)
                if stop_reason is not None and (reason := await asyncio.to_thread(stop_reason)) is not None:
                    raise ImgFailed(reason)
    except TimeoutError:
        raise ImgFailed(f"{IMG} took longer than {time_s_max:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        output, errors = await communication
    if process.returncode:
        message = errors[-ERROR_BYTES_MAX:].decode(errors="replace").strip()
        raise ImgFailed(message or f"{IMG} ended with {process.returncode}", process.returncode)
    return output
