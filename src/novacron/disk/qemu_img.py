"""``qemu-img``, run on files that may be hostile: within limits, and as whoever the caller says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

IMG = "qemu-img"
LOOK_S = 0.1
SAID_BYTES_MAX = 500
OUT_BYTES_MAX = 4 << 20

Wrap = Callable[[list[str]], list[str]]
"""Makes a command one of another user's."""


class ImgFailed(Exception):
    """The tool did not do it: says why. ``code``: with what it ended, None when it did not end by itself."""

    def __init__(self, why: str, code: int | None = None) -> None:
        super().__init__(why)
        self.code = code


def as_it_is(arguments: list[str]) -> list[str]:
    return arguments


async def run(
    arguments: Sequence[str], time_s_max: float, *, wrap: Wrap = as_it_is, limits: Sequence[str] = (),
    descriptors: Sequence[int] = (), directory: Path | None = None, wrong: Callable[[], str | None] = lambda: None,
) -> bytes:  # fmt: skip
    """Run the tool and return what it printed. ``limits`` are prlimit(1)'s; ``wrong`` is asked meanwhile, and ends it
    with what it returns. Raises ImgFailed."""
    command = [IMG, *arguments]
    if limits:
        command = ["prlimit", *limits, "--", *command]
    try:
        process = await asyncio.create_subprocess_exec(
            *wrap(command), pass_fds=descriptors, cwd=directory, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        raise ImgFailed(f"can't run {IMG}: {error}; install qemu-utils") from error
    talking = asyncio.create_task(process.communicate())
    try:
        async with asyncio.timeout(time_s_max):
            while not talking.done():
                await asyncio.wait({talking}, timeout=LOOK_S)
                if (why := wrong()) is not None:
                    raise ImgFailed(why)
    except TimeoutError:
        raise ImgFailed(f"{IMG} took longer than {time_s_max:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        out, said = await talking
    if process.returncode:
        words = said[-SAID_BYTES_MAX:].decode(errors="replace").strip()
        raise ImgFailed(words or f"{IMG} ended with {process.returncode}", process.returncode)
    return out
