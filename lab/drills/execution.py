"""Runs drills of the lab: each with a limit of time, and whatever happens, what it has made is removed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import getpass
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from types import FrameType

from lab.drills.model import LabDrill, LabDrillRun
from lab.drills.promises import misses
from lab.drills.recorder import Recorder
from lab.platform import open_directory
from novacron import __version__
from novacron.model.drill import TEXT_MAX, DrillVerdict
from novacron.model.node import AcceleratorKind
from novacron.qemu import probe

QEMU = "qemu-system-x86_64"


class DrillTimedOut(Exception):
    """A drill took longer than it may."""


def machine() -> str:
    """Return what a run was made on."""
    return f"{os.uname().machine}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.0f}, {_guests()}"


@functools.cache
def _guests() -> str:
    """Return how guests run here."""
    try:
        kind = asyncio.run(probe.probe(QEMU)).kind
    except (RuntimeError, OSError):
        return "no QEMU"
    return "KVM" if kind is AcceleratorKind.KVM else "emulated guests"


def run(drill: LabDrill) -> LabDrillRun:
    """Run a drill, and remove all that it has made. Only KeyboardInterrupt comes out of it."""
    began = datetime.now(UTC)
    error = ""
    with open_directory("nvd-") as directory:
        recorder = Recorder(drill.runbook, directory)
        try:
            with recorder, _limited(drill.limit_s):
                drill.run(recorder)
            error = "; ".join(misses(recorder.figures(), drill.promised))
        except Exception as failure:  # whatever it is: the drill has failed, and what it was is told
            error = f"{type(failure).__name__}: {failure}"[:TEXT_MAX]
    return LabDrillRun(
        drill.name,
        DrillVerdict.FAILED if error else DrillVerdict.PASSED,
        began,
        datetime.now(UTC),
        getpass.getuser(),
        __version__,
        machine(),
        recorder.figures(),
        drill.promised,
        tuple(recorder.steps),
        error,
    )


@contextlib.contextmanager
def _limited(limit_s: float) -> Iterator[None]:
    """Raise DrillTimedOut in the block after so long. What is undone afterwards has limits of its own."""

    def late(_: int, __: FrameType | None) -> None:
        raise DrillTimedOut(f"it took longer than {limit_s:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
