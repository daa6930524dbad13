"""What a drill works with: a folder, a clock for its steps, and a way to run runbooks; all of it ends with the run."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import getpass
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from lab import runbook_history, runbook_runs
from lab.drills.model import LabDrill, LabDrillRun
from lab.drills.promises import misses
from lab.platform import open_directory
from novacron import __version__
from novacron.model.drill import TEXT_MAX, DrillFigures, DrillStep, DrillVerdict
from novacron.model.node import AcceleratorKind
from novacron.qemu import probe
from novacron.runbooks import library, runner
from novacron.runbooks.programs import Execute
from novacron.runbooks.runner import StepOutcome
from novacron.terminal import say

QEMU = "qemu-system-x86_64"


class DrillTimedOut(Exception):
    """A drill took longer than it may."""


class RunbookFailed(Exception):
    """A runbook did not recover the platform."""


class Recorder(contextlib.ExitStack):
    """Records one run. What is entered into it is undone at the end of the run, whatever happened."""

    def __init__(self, drill: LabDrill, directory: Path) -> None:
        super().__init__()
        self.drill, self.directory = drill, directory
        self.steps: list[DrillStep] = []
        self.detect_s: float | None = None
        self.recover_s: float | None = None
        self.loss_s: float | None = None
        self._since = 0.0

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what the block does; say how it went."""
        began = time.monotonic()
        say(f"  {name} ...", err=True)
        try:
            yield
        except BaseException as error:
            self.steps.append(DrillStep(name, time.monotonic() - began, False, str(error)[:TEXT_MAX]))
            raise
        self.steps.append(DrillStep(name, round(time.monotonic() - began, 3)))

    @contextlib.contextmanager
    def fault(self, name: str) -> Iterator[None]:
        """Inject the fault; times count from its end."""
        with self.step(f"fault: {name}"):
            yield
        self._since = time.monotonic()

    def detected(self) -> None:
        """From now on it is known that something is wrong."""
        self.detect_s = time.monotonic() - self._since
        self._since = time.monotonic()

    def recovered(self) -> None:
        """All is well again, counted from when it was noticed; from the fault if nothing noticed it."""
        self.recover_s = time.monotonic() - self._since

    def run_runbook(self, machine: Execute, values: dict[str, str] | None = None, begin: str = "") -> None:
        """Run the drill's runbook, or its end from a step on. Raises RunbookFailed."""
        runbook = library.read(self.drill.runbook, runbook_runs.PAGES)
        steps = runbook.steps[runbook.index_of(begin) if begin else 0 :]
        with self.step(f"runbook {runbook.name}" + (f" from {begin}" if begin else "")):
            ready = runner.values_for(runbook, {}, values or {})
            log = self.directory / f"runbook-{len(self.steps)}.log"
            result, said = runbook_runs.run_steps(steps, ready, log, machine)
            if result.outcome is not StepOutcome.DONE:
                raise RunbookFailed(f"{result.why}\n{said[-TEXT_MAX:]}")

    def record_history(self) -> None:
        """Write into the runbook's page that all of it was executed against its fault, if that is wanted."""
        assert self.recover_s is not None
        page = runbook_runs.PAGES / f"{self.drill.runbook}.md"
        runbook = library.read(self.drill.runbook, runbook_runs.PAGES)
        runbook_history.record(page, runbook, self.detect_s, self.recover_s)

    def figures(self) -> DrillFigures:
        return DrillFigures(*(None if s is None else round(s, 2) for s in (self.detect_s, self.recover_s, self.loss_s)))


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
        recorder = Recorder(drill, directory)
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
