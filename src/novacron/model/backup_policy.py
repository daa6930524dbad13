"""Backup policies: which VMs are backed up when, into which repository, and which of these backups are kept."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from novacron.model import limits
from novacron.model.backup_proof import ProofProbe
from novacron.model.metadata import Tags
from novacron.model.project import DEFAULT
from novacron.retention import Keep

DAY_S = 86_400
AGE_S_MAX = 400 * DAY_S
PROBLEMS_MAX = 20
"""VMs whose problems a policy names."""

TEXT = r"^[\x20-\x7e]*\Z"
Schedule = Annotated[str, Meta(min_length=1, max_length=200, pattern=TEXT)]
TimeZone = Annotated[str, Meta(min_length=1, max_length=64, pattern=TEXT)]
Jitter = Annotated[int, Meta(ge=0, le=DAY_S)]
StartWithin = Annotated[int, Meta(ge=60, le=31 * DAY_S)]
Age = Annotated[int, Meta(ge=300, le=AGE_S_MAX)]
Days = Annotated[int, Meta(ge=1, le=400)]
VmRefs = Annotated[tuple[str, ...], Meta(max_length=limits.VMS_PER_BACKUP_POLICY_MAX)]


class BackupPolicySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a policy does. It covers the VMs in ``vms``, and those that have one of ``tags``; without both: all VMs of
    its project."""

    repository: str
    """Into which repository: its id."""
    schedule: Schedule = "daily"
    """When: ``hourly``, ``daily``, ``weekly``, ``monthly``, or five fields as in crontab(5): ``30 2 * * 1-5``."""
    time_zone: TimeZone = "UTC"
    """In which the schedule is, by its name in the IANA database."""
    jitter_s: Jitter = 1800
    """Backups start at random within this many seconds after the scheduled time."""
    start_within_s: StartWithin | None = None
    """A backup delayed longer than this waits for the next scheduled time. None: it begins when it can."""
    max_age_s: Age | None = None
    """The promise: the newest backup of each VM is younger than that. None: what the schedule makes possible."""
    keep: Keep = Keep()
    """Which of the policy's backups of each VM are kept; without a rule: all."""
    verify_days: Days | None = 30
    """Verify each backup after creation and every so many days. None: never."""
    prove_days: Days | None = None
    """Prove each backup after creation and every so many days: a VM restored from it must start. None: never."""
    probe: ProofProbe = ProofProbe()
    """What shows that the VM has started."""
    enabled: bool = True
    vms: VmRefs = ()
    """Ids of VMs."""
    tags: Tags = ()


class BackupPolicyChanges(msgspec.Struct, forbid_unknown_fields=True):
    """What to change of a policy; what is left out stays. ``keep``, ``probe``, ``vms`` and ``tags`` are replaced as a
    whole."""

    repository: str | UnsetType = UNSET
    schedule: Schedule | UnsetType = UNSET
    time_zone: TimeZone | UnsetType = UNSET
    jitter_s: Jitter | UnsetType = UNSET
    start_within_s: StartWithin | UnsetType | None = UNSET
    max_age_s: Age | UnsetType | None = UNSET
    keep: Keep | UnsetType = UNSET
    verify_days: Days | UnsetType | None = UNSET
    prove_days: Days | UnsetType | None = UNSET
    probe: ProofProbe | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    vms: VmRefs | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET

    def given(self) -> dict[str, Any]:
        """Return what is to change."""
        return {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not UNSET}


class PolicyProblem(msgspec.Struct, frozen=True):
    """Why a VM could not be backed up when it was due."""

    vm: str
    vm_name: str
    error: str
    reason_code: str = ""
    """The same for programs: a ``WaitCode``."""


class BackupPolicy(msgspec.Struct, frozen=True):
    """A policy as stored and as the API shows it."""

    id: str
    name: str
    spec: BackupPolicySpec
    repository_name: str
    promise_s: int
    """The promised maximum age of each VM's newest backup: ``max_age_s``, or what the schedule allows."""
    effective_from: datetime
    """When its schedule was set, or it was enabled: earlier times of the schedule do not count."""
    revision: int
    created_at: datetime
    run_at: datetime | None = None
    """When somebody last asked for a backup of all of its VMs at once."""
    problems: tuple[PolicyProblem, ...] = ()
    """Of VMs that are due and can't be backed up; at most 20 are named."""
    problem_count: int = 0
    project: str = DEFAULT


class BackupSummary(msgspec.Struct, frozen=True):
    """What backups a VM has."""

    policies: tuple[str, ...] = ()
    """Names of the enabled policies that cover it."""
    newest_at: datetime | None = None
    """When the newest backup was requested: its age counts from then."""
    verified_at: datetime | None = None
    """When the newest verified backup was requested."""
    late_at: datetime | None = None
    """When a policy's promise is or will be broken. None: no policy covers the VM."""
    proved_at: datetime | None = None
    """When the newest proved backup was requested."""
    proof_failed: bool = False
    """The newest proof of one of its backups failed."""
