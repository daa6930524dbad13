"""Runs one command of a runbook: without a shell, with a time limit, and with what it prints shown as it comes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, NamedTuple

INTERRUPTED_S_MAX = 15.0
"""How long a command may clean up that is ended before its time, until it is killed."""
OUTPUT_BYTES_MAX = 1 << 20
LINE_BYTES_MAX = 1 << 16


class CommandResult(NamedTuple):
    """How a command ended, and what it printed, errors too unless they went elsewhere."""

    exit_code: int
    output: str
    timed_out: bool = False


Execute = Callable[[tuple[str, ...], float, Callable[[str], None]], CommandResult]
"""Runs a command, for at most some seconds, and passes on each line that it prints."""


def execute_here(
    words: tuple[str, ...], limit_s: float, show: Callable[[str], None], errors: IO[bytes] | None = None
) -> CommandResult:
    """Run a command where the runbook is run: NovaCron is the one that runs the runbook. Raises OSError."""
    own = (sys.executable, "-m") if words[0] == "novacron" else ()
    return execute((*own, *words), limit_s, show, errors)


def execute(
    words: tuple[str, ...], limit_s: float, show: Callable[[str], None], errors: IO[bytes] | None = None
) -> CommandResult:
    """Run a command on this machine, by its name in PATH; one that takes too long, or whose caller is interrupted, is
    interrupted and may clean up. ``errors``: a file for what it prints as errors, instead of the result. Raises OSError
    if its program can't be run."""
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors or subprocess.STDOUT,
        start_new_session=True,
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        _interrupt(process)
        _kill(process)

    timer = threading.Timer(limit_s, end)
    timer.start()
    try:
        output = _read(process, show)
        code = process.wait()
    except BaseException:
        _interrupt(process)
        raise
    finally:
        timer.cancel()
        _kill(process)
        process.wait()
    return CommandResult(code, output, late.is_set())


def _read(process: subprocess.Popen[bytes], show: Callable[[str], None]) -> str:
    kept = bytearray()
    assert process.stdout is not None
    with process.stdout:
        while line := process.stdout.readline(LINE_BYTES_MAX):
            kept += line[: max(OUTPUT_BYTES_MAX - len(kept), 0)]
            show(line.decode(errors="replace").rstrip("\n"))
    return kept.decode(errors="replace")


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Let a command with all that it has started end as by Ctrl-C; wait until it has, for a while."""
    with contextlib.suppress(ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGINT)
        process.wait(INTERRUPTED_S_MAX)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a command with all that it has started, if any of it is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
