"""What a drill of the lab is, and what is kept of a run."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

import msgspec

from lab.drills.recorder import Recorder
from novacron.model.drill import DrillEvery, DrillFigures, DrillStep, DrillVerdict


class LabDrill(NamedTuple):
    """A fault, and what has to come of it."""

    name: str
    what: str
    """What happens, and what recovers, in a line."""
    every: DrillEvery
    promised: DrillFigures
    run: Callable[[Recorder], None]
    """Raises AssertionError, LabFailed or RunbookFailed if it does not recover."""
    limit_s: float = 300.0
    runbook: str = ""
    """The page that recovers; empty: the platform recovers by itself."""
    needs_guest: bool = False
    """It starts a VM."""
    needs_root: bool = False
    """It mounts a disk of its own."""


class LabDrillRun(msgspec.Struct, frozen=True):
    """How a run went: a file of ``docs/disaster-recovery/results``."""

    drill: str
    verdict: DrillVerdict
    started_at: datetime
    ended_at: datetime
    who: str
    version: str
    machine: str
    measured: DrillFigures
    promised: DrillFigures
    steps: tuple[DrillStep, ...]
    error: str = ""
