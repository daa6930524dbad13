"""Drills: what is rehearsed how often, what it has to show, and how a run of one went."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, NamedTuple

import msgspec

STEPS_MAX = 100
TEXT_MAX = 2000
SECONDS_MAX = 10 * 366 * 86_400.0
OVERDUE_DAYS = 35
"""A drill whose last run is older is overdue, whatever came of it: a month, and some days to make up for it."""


class DrillName(StrEnum):
    """A drill that an installation runs on itself, and that changes nothing that lasts."""

    DATABASE_RESTORE = "database-restore"
    """The newest backup of the database is recovered into a scratch database, looked at, and thrown away."""
    BACKUP_PROOFS = "backup-proofs"
    """VMs are made of the newest backups of some VMs, connected to nothing, and have to start."""
    RUNBOOKS = "runbooks"
    """Each command of each runbook is one that the command line has."""
    CERTIFICATES = "certificates"
    """No certificate of a node or a server ends soon."""


class DrillVerdict(StrEnum):
    """What came of a run."""

    PASSED = "passed"
    FAILED = "failed"


class DrillEvery(StrEnum):
    """How often a drill is run."""

    MONTHLY = "monthly"
    QUARTERLY = "quarterly"
    YEARLY = "yearly"


Seconds = Annotated[float, msgspec.Meta(ge=0, le=SECONDS_MAX)]
Words = Annotated[str, msgspec.Meta(max_length=TEXT_MAX)]
Short = Annotated[str, msgspec.Meta(min_length=1, max_length=120)]


class DrillFigures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Times of a drill, measured or promised; null: it has no such time."""

    detect_s: Seconds | None = None
    """Until it was known that something is wrong."""
    recover_s: Seconds | None = None
    """From then on until all was well again (recovery time, RTO)."""
    loss_s: Seconds | None = None
    """What was accepted so long before the fault, and later, is lost (recovery point, RPO)."""


class DrillStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A step of a run."""

    name: Short
    took_s: Seconds
    passed: bool = True
    said: Words = ""


class RecordDrill(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a run of a drill went."""

    drill: DrillName
    verdict: DrillVerdict
    started_at: datetime
    ended_at: datetime
    version: Short
    """Of the program that ran it."""
    machine: Short
    """Where it was run."""
    measured: DrillFigures = DrillFigures()
    promised: DrillFigures = DrillFigures()
    steps: Annotated[tuple[DrillStep, ...], msgspec.Meta(max_length=STEPS_MAX)] = ()
    error: Words = ""
    """Why it failed; empty: it passed."""


class DrillRun(msgspec.Struct, frozen=True):
    """A run of a drill as it is kept."""

    id: str
    drill: DrillName
    verdict: DrillVerdict
    started_at: datetime
    ended_at: datetime
    recorded_by: str
    """The user who ran it."""
    version: str
    machine: str
    measured: DrillFigures
    promised: DrillFigures
    steps: tuple[DrillStep, ...]
    error: str
    revision: int
    created_at: datetime
    """When it was recorded."""


class DrillState(msgspec.Struct, frozen=True):
    """A drill, and how its last run went."""

    name: DrillName
    what: str
    every: DrillEvery
    overdue: bool
    age_s: float
    """Since its last run; if there was none, since the installation began."""
    last: DrillRun | None


class DrillKind(NamedTuple):
    """What there is to know of a drill before it is run."""

    what: str
    every: DrillEvery


KINDS = {
    DrillName.DATABASE_RESTORE: DrillKind(
        "recover the newest backup of the database into a scratch database, and look at it", DrillEvery.MONTHLY
    ),
    DrillName.BACKUP_PROOFS: DrillKind(
        "start VMs made of the newest backups of some VMs, connected to nothing", DrillEvery.MONTHLY
    ),
    DrillName.RUNBOOKS: DrillKind("look whether each command of each runbook exists", DrillEvery.MONTHLY),
    DrillName.CERTIFICATES: DrillKind("look whether a certificate ends soon", DrillEvery.MONTHLY),
}


def is_overdue(age: timedelta) -> bool:
    """Say whether a drill whose last run was so long ago should have been run again."""
    return age > timedelta(days=OVERDUE_DAYS)
