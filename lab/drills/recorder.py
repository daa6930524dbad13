"""What a drill works with: a folder, a clock for its steps, and a way to run runbooks; all of it ends with the run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from lab import runbook_history, runbook_runs
from novacron.model.drill import TEXT_MAX, DrillFigures, DrillStep
from novacron.runbooks import library, runner
from novacron.runbooks.programs import Execute
from novacron.runbooks.runner import StepOutcome
from novacron.terminal import say


class RunbookFailed(Exception):
    """A runbook did not recover the platform."""


class Recorder(contextlib.ExitStack):
    """Records one run. What is entered into it is undone at the end of the run, whatever happened."""

    def __init__(self, runbook: str, directory: Path) -> None:
        """``runbook``: the name of the page that recovers; empty: the platform recovers by itself."""
        super().__init__()
        self.runbook, self.directory = runbook, directory
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
        runbook = library.read(self.runbook, runbook_runs.PAGES)
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
        page = runbook_runs.PAGES / f"{self.runbook}.md"
        runbook = library.read(self.runbook, runbook_runs.PAGES)
        runbook_history.record(page, runbook, self.detect_s, self.recover_s)

    def figures(self) -> DrillFigures:
        return DrillFigures(*(None if s is None else round(s, 2) for s in (self.detect_s, self.recover_s, self.loss_s)))
