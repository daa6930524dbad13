"""What to do next with a VM that this node may run: a pure function of its spec and its situation.

``PowerRequests`` keeps what the guest was asked to do and has not done yet, from step to step.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

import msgspec

from novacron.agent.vm.journal import AnewAsked
from novacron.model import limits
from novacron.model.vm import Power, Restart, VmSpec, VmState
from novacron.model.waiting import WaitCode


class Step(StrEnum):
    """One thing to do with QEMU."""

    NOTHING = "nothing"
    START = "start"
    CONTINUE = "continue"
    PAUSE = "pause"
    REBOOT = "reboot"
    RESET = "reset"
    POWER_DOWN = "power-down"
    KILL = "kill"
    MARK_HALTED = "mark-halted"
    WAKE = "wake"
    """Wake a guest that has suspended itself (ACPI S3)."""
    MAKE_ROOM = "make-room"
    """Let it go on once its disk, or what that lies on, has room again."""


STATES = {
    "running": VmState.RUNNING,
    "finish-migrate": VmState.RUNNING,
    "paused": VmState.PAUSED,
    "prelaunch": VmState.PAUSED,
    "postmigrate": VmState.PAUSED,
    "save-vm": VmState.RUNNING,
    "io-error": VmState.PAUSED,
    "suspended": VmState.RUNNING,
    "shutdown": VmState.STOPPED,
    "absent": VmState.STOPPED,
}
"""What QEMU's run states (QMP RunState) mean to users; in others nobody can tell how the guest is."""

SUSPENDED = "suspended"
"""The guest has suspended itself. It is to run, so it is woken."""
LEFT = "postmigrate"
"""The guest was handed over."""
RESUMABLE = frozenset({"paused", "prelaunch", LEFT})
SLOW_S = 10.0
"""A guest that takes longer to do as it was asked is said to."""


def backoff_s(crashes: int) -> float:
    """Return how long to wait before a VM that has crashed ``crashes`` times is started again."""
    return 0.0 if crashes <= 1 else min(2.0 ** (crashes - 1), limits.RESTART_BACKOFF_S_MAX)


class Situation(msgspec.Struct, frozen=True):
    """How a VM is, as far as the next step depends on it."""

    run_state: str
    """QEMU's run state (QMP RunState), ``absent`` without a QEMU, ``unresponsive`` when it does not answer."""
    halted_at_start: int | None = None
    """``spec.starts`` when the guest powered itself off."""
    reboots: int = 0
    """How many reboots that were asked for are done, or asked of the guest; and how many resets."""
    resets: int = 0
    rebooting_s: float | None = None
    """How long ago the guest was asked to boot again; None: it was not."""
    stopping_s: float | None = None
    """How long ago it was asked to power down; None: it was not."""
    stop_revoked: bool = False
    """It was asked to power down, and before it had, it was to run again: when it does power off, it is started."""


class PowerRequests:
    """What a guest was asked to do and has not done yet. Times are in seconds of the worker's clock.

    QEMU's events come at any moment, also while a request is being made: what was asked is noted before it is asked.
    """

    def __init__(self) -> None:
        self._stopping_at: float | None = None
        self._revoked_at: float | None = None
        self._revoked_for_s = 0.0
        self._asked: AnewAsked | None = None
        """What the journal says of a guest that is to begin anew."""
        self._rebooting_at: float | None = None
        """When it was asked to; None: it was not, or has begun anew since."""

    def recall(self, asked: AnewAsked | None, now: float, unix_now: float) -> None:
        """Take what the journal says, also of what an earlier agent asked the guest to do."""
        if asked == self._asked:
            return
        self._asked = asked
        if asked is None:
            self._rebooting_at = None
        else:  # the node's clock may have been set since
            self._rebooting_at = now - min(max(unix_now - asked.at, 0.0), limits.REBOOT_S_MAX)

    @property
    def begun_anew(self) -> AnewAsked | None:
        """What the journal says was asked of the guest, and is done: it has begun anew, or has ended."""
        return self._asked if self._rebooting_at is None else None

    def look(self, spec: VmSpec, run_state: str, now: float) -> None:
        """Take note of how the VM is to be, and is: a stop that is revoked is a start."""
        if run_state == "absent":
            self._stopping_at = self._revoked_at = self._rebooting_at = None
        elif spec.power is Power.STOPPED:
            self._revoked_at = None
        elif self._stopping_at is not None:
            self._revoked_at, self._stopping_at = self._stopping_at, None
            self._revoked_for_s = max(float(spec.stop_timeout_s), limits.REBOOT_S_MAX)
        if self._revoked_at is not None and now - self._revoked_at > self._revoked_for_s:
            self._revoked_at = None  # it has ignored the request: if it powers off now, it does so by itself

    def situation(self, run_state: str, record: PowerRecord, now: float) -> Situation:
        """Return how the VM is."""
        return Situation(
            run_state,
            halted_at_start=record.halted_at_start,
            reboots=record.reboots if self._asked is None else max(record.reboots, self._asked.reboots),
            resets=record.resets,
            rebooting_s=None if self._rebooting_at is None else now - self._rebooting_at,
            stopping_s=None if self._stopping_at is None else now - self._stopping_at,
            stop_revoked=self._revoked_at is not None,
        )

    def asks(self, step: Step, now: float) -> None:
        """The guest is about to be asked, or made, to do something."""
        match step:
            case Step.POWER_DOWN:
                self._stopping_at = now
            case Step.KILL:
                self._stopping_at = self._revoked_at = self._rebooting_at = None

    @property
    def rebooting(self) -> bool:
        """The guest was asked to begin anew, and has not been seen to. One that does so at once may do it without
        confirming the request."""
        return self._rebooting_at is not None

    def overdue(self, now: float) -> bool:
        """Say whether a guest that was asked to begin anew should have by now."""
        return self._rebooting_at is not None and now - self._rebooting_at >= limits.REBOOT_S_MAX

    def was_reset(self) -> None:
        """QEMU has reset the guest, and its event is to come."""
        self._rebooting_at = None

    def on_event(self, name: str) -> None:
        """QEMU says that something has happened."""
        if name in ("RESET", "EXIT"):
            self.was_reset()

    @property
    def stopping(self) -> bool:
        """The guest has been asked to power down, and that still holds."""
        return self._stopping_at is not None

    def next_look_s(self, spec: VmSpec, now: float) -> float | None:
        """Return in how many seconds a request is overdue, or to be said to last; None when there is none."""
        if self._rebooting_at is not None:
            since_s, limit_s = now - self._rebooting_at, limits.REBOOT_S_MAX
        elif self._stopping_at is not None:
            since_s, limit_s = now - self._stopping_at, float(spec.stop_timeout_s)
        else:
            return None
        return min(SLOW_S, limit_s) - since_s if since_s < SLOW_S else limit_s - since_s

    def lacks(self, spec: VmSpec, now: float) -> tuple[str, WaitCode | None]:
        """Return what the guest has been asked to do for a while and has not done, and its code."""
        if self._stopping_at is not None and now - self._stopping_at >= SLOW_S:
            words = f"the guest has not powered off yet; it is forced off {spec.stop_timeout_s} s after it was asked to"
            return f"{words}, or now: novacron vm stop --force", WaitCode.GUEST_SHUTS_DOWN
        if self._rebooting_at is not None and now - self._rebooting_at >= SLOW_S:
            words = f"the guest has not rebooted yet; it is reset {limits.REBOOT_S_MAX:.0f} s after it was asked to"
            return words, WaitCode.GUEST_REBOOTS
        return "", None


class PowerRecord(Protocol):
    """What a VM's journal record says of what was done."""

    @property
    def halted_at_start(self) -> int | None: ...

    @property
    def reboots(self) -> int: ...

    @property
    def resets(self) -> int: ...


def decide(spec: VmSpec, situation: Situation) -> Step:
    """Return the next step towards ``spec``. Pure."""
    run_state = situation.run_state
    wants_off = spec.power is Power.STOPPED or situation.halted_at_start == spec.starts
    if run_state == "absent":
        return Step.NOTHING if wants_off else Step.START
    if run_state == "shutdown":
        # The guest has powered off. Unasked, it stays off until it is started again, or begins anew.
        again = spec.restart is Restart.ALWAYS or situation.rebooting_s is not None or situation.stop_revoked
        return Step.KILL if wants_off or again else Step.MARK_HALTED
    if spec.power is Power.STOPPED:
        return _stop(spec, situation)
    return _keep_on(spec, situation)


def _keep_on(spec: VmSpec, situation: Situation) -> Step:
    """Return the next step with a QEMU that is there and is to stay."""
    run_state = situation.run_state
    if run_state == "io-error":
        return Step.MAKE_ROOM
    if run_state not in STATES:  # ``inmigrate``, too: it owns the VM, but the memory that it waited for will not come
        return Step.KILL
    if run_state == LEFT and spec.resets > situation.resets:
        return Step.KILL  # it is to begin anew: it may have run elsewhere since, and must not write what it remembers
    if run_state == SUSPENDED:
        return Step.WAKE
    if run_state == "running" and (step := _restart(spec, situation)) is not None:
        return step
    if spec.power is Power.PAUSED:
        return Step.PAUSE if run_state == "running" else Step.NOTHING
    return Step.CONTINUE if run_state in RESUMABLE else Step.NOTHING


def _stop(spec: VmSpec, situation: Situation) -> Step:
    if situation.run_state not in ("running", SUSPENDED) or spec.stop_timeout_s == 0:
        return Step.KILL
    if situation.stopping_s is None:
        return Step.POWER_DOWN
    return Step.KILL if situation.stopping_s >= spec.stop_timeout_s else Step.NOTHING


def _restart(spec: VmSpec, situation: Situation) -> Step | None:
    overdue = situation.rebooting_s is not None and situation.rebooting_s >= limits.REBOOT_S_MAX
    if spec.resets > situation.resets or overdue:
        return Step.RESET
    return Step.REBOOT if spec.reboots > situation.reboots else None
