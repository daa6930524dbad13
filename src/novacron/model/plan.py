"""Recovery plans: which VMs go on from their replicas, in which order, and what shows that each is well."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model import limits
from novacron.model.node import NodeName
from novacron.model.project import DEFAULT

RUNS_KEPT = 20
"""Of a plan, beside those that a failback needs: one for each of its VMs at most."""

Delay = Annotated[int, Meta(ge=0, le=3600)]
StartTimeout = Annotated[int, Meta(ge=30, le=7200)]
GoneNodes = Annotated[tuple[NodeName, ...], Meta(max_length=100)]


class PlanWait(StrEnum):
    """What shows that a VM is healthy, so that the next one is started."""

    RUNNING = "running"
    GUEST_AGENT = "guest-agent"


class PlanVm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A VM of a plan, by its id. It is started ``delay_s`` after the one before is well."""

    vm: str
    delay_s: Delay = 0
    wait_for: PlanWait = PlanWait.RUNNING
    timeout_s: StartTimeout = 600
    """How long it may take until it is well, from when it was begun, or, if it moves, from when its move has ended."""


PlanVms = Annotated[tuple[PlanVm, ...], Meta(min_length=1, max_length=limits.VMS_PER_PLAN_MAX)]


class PlanAction(StrEnum):
    """What a run of a plan does."""

    TEST = "test"
    """VMs are made of the replicas, connected to nothing, and deleted at the end."""
    FAILOVER = "failover"
    """The VMs themselves go on from their replicas."""
    SWITCH = "switch"
    """The VMs move to where their replicas are, and lose nothing."""
    FAILBACK = "failback"
    """The VMs move back to where they were before the last failover or switch, and lose nothing."""

    @classmethod
    def _missing_(cls, value: object) -> PlanAction | None:
        """Keep the word for an action that a later version has: its runs can be read, and stay as they are."""
        if not isinstance(value, str):
            return None
        unknown = str.__new__(cls, value)
        unknown._name_ = unknown._value_ = value
        return unknown

    @property
    def is_known(self) -> bool:
        """Say whether this version can do it."""
        return self.value in set(PlanAction)


LEAVING = (PlanAction.FAILOVER, PlanAction.SWITCH)
"""What a failback is the way back of."""


class StepPhase(StrEnum):
    """How far one VM of a run is."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"


class PlanStep(msgspec.Struct, frozen=True):
    """One VM of a run."""

    vm: str
    vm_name: str
    phase: StepPhase = StepPhase.WAITING
    node: str = ""
    """The target node."""
    point: int = 0
    """Number of the point from which it goes on."""
    lost_s: float | None = None
    """How old that point was: what the VM lost, or would have lost."""
    took_s: float | None = None
    """From the beginning of the run until it was healthy."""
    made: str = ""
    """The VM that was made to test it; empty: none, or it is deleted."""
    came_from: str = ""
    """The VM's previous node; empty: it stays where it is."""
    migration: str = ""
    """Id of its migration."""
    turned: str = ""
    """The reverse replica that was created on its previous node; empty: there was one, or none is possible."""
    began_at: datetime | None = None
    ended_at: datetime | None = None
    error: str = ""
    """Why it failed, or what it waits for."""
    reason_code: str = ""
    """The same for programs: a ``WaitCode``, while it waits its VM's own."""


class PlanRun(msgspec.Struct, frozen=True):
    """One run of a plan, and its report."""

    id: str
    action: PlanAction
    actor: str
    began_at: datetime
    steps: tuple[PlanStep, ...]
    confirm: GoneNodes = ()
    """Nodes of which the actor has said that their hosts are off."""
    stopped: bool = False
    """Stopped by a user: no further VM was started."""
    ended_at: datetime | None = None

    @property
    def is_well(self) -> bool:
        """Say whether every VM was well in the end."""
        return self.ended_at is not None and all(step.phase is StepPhase.READY for step in self.steps)


class Plan(msgspec.Struct, frozen=True):
    """A plan as stored and as the API shows it. ``runs``: the last ones, the newest first, and those from before that
    say where a failback brings a VM."""

    id: str
    name: str
    vms: PlanVms
    runs: tuple[PlanRun, ...]
    revision: int
    created_at: datetime
    project: str = DEFAULT

    @property
    def under_way(self) -> PlanRun | None:
        """Return the run that has not ended."""
        return self.runs[0] if self.runs and self.runs[0].ended_at is None else None


def home_of(runs: Sequence[PlanRun], vm: str) -> str:
    """Return the node to which a failback brings a VM, by the runs before, the newest first: where it was before the
    last failovers and switches that no failback has undone; empty: nowhere. Pure."""
    left = _left_first(runs, vm)
    return "" if left is None else next(step.came_from for step in left.steps if step.vm == vm and step.came_from)


def _left_first(runs: Sequence[PlanRun], vm: str) -> PlanRun | None:
    """Return the first of the failovers and switches of a VM that no failback has undone."""
    left = None
    for run in runs:
        step = next((step for step in run.steps if step.vm == vm and step.came_from), None)
        if step is None:
            continue
        if run.action in LEAVING:  # one that was not well afterwards has gone, too
            left = run
        elif run.action is PlanAction.FAILBACK and step.phase is StepPhase.READY:
            break
    return left


def kept_runs(runs: Sequence[PlanRun]) -> tuple[PlanRun, ...]:
    """Return those of a plan's runs, the newest first, that are kept: the last ones, and older ones that a failback
    needs. Of these only that is kept which it needs, because the failbacks that have undone the rest go. Pure."""
    recent, older = runs[:RUNS_KEPT], runs[RUNS_KEPT:]
    needed: dict[str, set[str]] = {}
    for vm in {step.vm for run in older for step in run.steps if step.came_from}:
        left = _left_first(runs, vm)
        if left is not None:
            needed.setdefault(left.id, set()).add(vm)
    return (*recent, *(_only_of(run, needed[run.id]) for run in older if run.id in needed))


def _only_of(run: PlanRun, of: set[str]) -> PlanRun:
    """Return a run that says only of these VMs where they were."""
    steps = (step if step.vm in of else msgspec.structs.replace(step, came_from="") for step in run.steps)
    return msgspec.structs.replace(run, steps=tuple(steps))


def next_step(run: PlanRun, delays: dict[str, int], now: datetime) -> int | None:
    """Return the number of the step that is to be looked at; None: a delay has not passed, or all are done. Pure."""
    for number, step in enumerate(run.steps):
        if step.phase is StepPhase.STARTING:
            return number
        if step.phase is StepPhase.WAITING:
            before = run.steps[number - 1].ended_at if number else run.began_at
            waited_s = (now - (before or run.began_at)).total_seconds()
            return number if waited_s >= delays.get(step.vm, 0) else None
    return None


def is_done(run: PlanRun) -> bool:
    """Say whether every step has ended. Pure."""
    return all(step.phase in (StepPhase.READY, StepPhase.FAILED) for step in run.steps)
