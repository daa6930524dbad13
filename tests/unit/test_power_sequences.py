"""Every sequence of up to five power requests and guest events comes to rest where the last request says.

The decisions are the product's own; QEMU and its guest are simulated. Sequences that lead to the same state are
followed once, which covers all of them.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import msgspec
import pytest

from novacron.agent.vm.journal import AnewAsked
from novacron.agent.vm.power import PowerRequests, Situation, Step, decide
from novacron.model import limits
from novacron.model.vm import Power, Restart, VmAction, VmSpec
from novacron.model.waiting import WaitCode
from novacron.store.vms import power_changes

LENGTH = 5
STEPS_MAX = 20
LONG_S, MOMENT_S, UNIX_S = 1000.0, 1.0, 1_700_000_000.0
REQUESTS = ("start", "stop", "kill", "pause", "resume", "reboot", "reset")
EVENTS = (
    "guest powers off",
    "guest resets",
    "guest suspends",
    "QEMU dies",
    "guest does what it was asked",
    "its agent restarts",
    "it migrates",
    "a moment passes",
    "long passes",
)
POWER_OFF = ("at once", "later", "never")
"""When a guest does as ACPI asks."""
REBOOT = ("at once", "at once, without a word", "later", "never", "no agent")


class Record(msgspec.Struct):
    halted_at_start: int | None = None
    reboots: int = 0
    resets: int = 0
    anew_asked: AnewAsked | None = None


class World:
    """One VM, its QEMU and its guest."""

    def __init__(self, power_off: str, reboot: str, restart: Restart) -> None:
        self.power_off, self.reboot = power_off, reboot
        self.spec = VmSpec(image="tiny", power=Power.RUNNING, starts=1, restart=restart)
        self.record, self.requests = Record(), PowerRequests()
        self.run_state, self.now = "absent", 0.0
        self.pending: str | None = None
        """What the guest will do later, having been asked."""
        self.resets_asked = self.resets_done = 0
        self.owed = False
        """The guest was to begin anew, and has not yet."""
        self.settle()

    def key(self) -> tuple[object, ...]:
        """Return what the future depends on: counters and times relative to now."""
        spec, record = self.spec, self.record
        situation = self.requests.situation(self.run_state, record, self.now)
        asked = record.anew_asked is not None
        halted = record.halted_at_start == spec.starts
        behind = (spec.reboots - record.reboots, spec.resets - record.resets, self.resets_asked - self.resets_done)
        times = (situation.rebooting_s, situation.stopping_s, situation.stop_revoked)
        return spec.power, spec.stop_timeout_s, self.run_state, halted, asked, *behind, *times, self.pending, self.owed

    def happens(self, what: str) -> bool:
        """Let something happen; say whether it can."""
        match what:
            case "start" | "stop" | "pause" | "resume" | "reboot" | "reset":
                self._request(VmAction(what), None)
                self.resets_asked += what in ("reboot", "reset")
                self.owed |= what in ("reboot", "reset") and self.run_state != "absent"
            case "kill":
                self._request(VmAction.STOP, 0)
            case "guest powers off" | "guest resets" | "guest suspends" if self.run_state != "running":
                return False
            case "guest suspends":
                self.run_state = "suspended"
            case "guest powers off":
                self._power_off()
            case "guest resets":
                self.resets_asked += 1
                self._reset()
            case "QEMU dies":
                if self.run_state == "absent":
                    return False
                self._exit()
            case "guest does what it was asked":
                if self.pending is None or self.run_state != "running":
                    return False
                self._power_off() if self.pending == "power off" else self._reset()
            case "its agent restarts":
                self.requests = PowerRequests()
            case "it migrates":
                return self._migrate()
            case _:
                self.now += LONG_S if what == "long passes" else MOMENT_S
        self.settle()
        return True

    def _request(self, action: VmAction, stop_timeout_s: int | None) -> None:
        self.spec = msgspec.structs.replace(self.spec, **power_changes(self.spec, action, stop_timeout_s))

    def _migrate(self) -> bool:
        """Go on at another node, which begins with what was done here; say whether the VM may leave."""
        waits = self.requests.rebooting and not self.requests.overdue(self.now)
        if self.run_state not in ("running", "paused") or self.requests.stopping or waits:
            return False
        self.requests, self.record.anew_asked = PowerRequests(), None
        self.settle()
        return True

    def settle(self) -> None:
        """Take steps as the reconciler does until there is nothing to do."""
        for _ in range(STEPS_MAX):
            self._look()
            situation = self.requests.situation(self.run_state, self.record, self.now)
            step = decide(self.spec, situation)
            if step is Step.NOTHING:
                return
            self.requests.asks(step, self.now)
            self._do(step, situation)
        raise AssertionError(f"it never rests: {self.key()}")

    def _look(self) -> None:
        requests, record = self.requests, self.record
        requests.recall(record.anew_asked, self.now, UNIX_S + self.now)
        requests.look(self.spec, self.run_state, self.now)
        if requests.begun_anew is not None:
            record.reboots = max(record.reboots, requests.begun_anew.reboots)
            self._note_anew(None)

    def _note_anew(self, asked: AnewAsked | None) -> None:
        self.record.anew_asked = asked
        self.requests.recall(asked, self.now, UNIX_S + self.now)

    def _do(self, step: Step, situation: Situation) -> None:
        match step:
            case Step.START:
                self.run_state, self.pending, self.owed = "running", None, False
                self.record = Record(None, self.spec.reboots, self.spec.resets)
            case Step.CONTINUE | Step.MAKE_ROOM | Step.WAKE:
                self.run_state = "running"
            case Step.PAUSE:
                self.run_state = "paused"
            case Step.KILL:
                self._exit()
            case Step.MARK_HALTED:
                self.record.halted_at_start = self.spec.starts
            case Step.RESET:
                self._note_anew(AnewAsked(self.spec.reboots, 0.0))
                self.record.resets = self.spec.resets
                self._reset()
            case Step.REBOOT:
                self._note_anew(AnewAsked(self.spec.reboots, UNIX_S + self.now))
                self._ask_to_reboot()
            case Step.POWER_DOWN:
                self.run_state = "running"  # asleep, it is woken before
                if self.power_off == "at once":
                    self._power_off()
                elif self.power_off == "later":
                    self.pending = "power off"

    def _ask_to_reboot(self) -> None:
        """Ask the guest's agent; its answer comes after what the guest does at once."""
        if self.reboot.startswith("at once"):
            self._reset()
        elif self.reboot == "later":
            self.pending = "reboot"
        confirmed = self.reboot in ("at once", "later", "never")
        if not confirmed and self.requests.rebooting:
            self._reset()

    def _reset(self) -> None:
        self.resets_done += 1
        self.pending, self.owed = None, False
        self.requests.on_event("RESET")

    def _power_off(self) -> None:
        self.run_state, self.pending = "shutdown", None

    def _exit(self) -> None:
        self.run_state, self.pending = "absent", None
        self.requests.on_event("EXIT")

    def check_rest(self, history: tuple[str, ...]) -> None:
        """Let all time pass that there is, and demand that the VM is as it was asked for."""
        for _ in range(4):
            self.now += LONG_S
            self.settle()
        off = self.spec.power is Power.STOPPED or self.record.halted_at_start == self.spec.starts
        expected = "absent" if off else "paused" if self.spec.power is Power.PAUSED else "running"
        assert self.run_state == expected, f"{history}: {self.run_state}, not {expected}"
        assert not self.requests.stopping, f"{history}: it stops for ever"
        assert self.resets_done <= self.resets_asked, f"{history}: a reset that nobody asked for"
        assert not (self.owed and self.run_state == "running"), f"{history}: it never began anew, as it was asked to"


def histories(world: World) -> Iterator[tuple[tuple[str, ...], World]]:
    """Yield each state that sequences reach, with one sequence that reaches it."""
    level: list[tuple[tuple[str, ...], World]] = [((), world)]
    reached = {world.key()}
    for _ in range(LENGTH):
        following: list[tuple[tuple[str, ...], World]] = []
        for history, before in level:
            for what in (*REQUESTS, *EVENTS):
                after = copy.deepcopy(before)
                if after.happens(what) and after.key() not in reached:
                    reached.add(after.key())
                    following.append(((*history, what), after))
        yield from following
        level = following


@pytest.mark.parametrize("restart", list(Restart))
@pytest.mark.parametrize("power_off", POWER_OFF)
def test_no_sequence_ends_in_a_stuck_state_or_resets_unasked(power_off: str, restart: Restart) -> None:
    for reboot in REBOOT:
        states = 0
        for history, world in histories(World(power_off, reboot, restart)):
            copy.deepcopy(world).check_rest(history)
            states += 1
        assert states > 50, "sequences lead to many states"


@pytest.mark.parametrize("interrupted", ["its agent restarts", "it migrates"])
def test_a_guest_that_ignores_a_reboot_is_reset_once_whatever_happens_meanwhile(interrupted: str) -> None:
    world = World("at once", "never", Restart.ON_FAILURE)
    for what in ("reboot", "a moment passes", interrupted, "long passes", interrupted, "long passes"):
        world.happens(what)
    assert (world.resets_done, world.owed, world.record.reboots) == (1, False, 1)


def test_a_clock_that_was_set_does_not_put_a_reset_off(now: float = 100.0) -> None:
    for asked_at in (UNIX_S - 1e6, UNIX_S + 1e6):
        requests = PowerRequests()
        requests.recall(AnewAsked(1, asked_at), now, UNIX_S)
        assert requests.overdue(now + limits.REBOOT_S_MAX)


def test_a_start_that_follows_a_stop_wins_whether_the_guest_powers_off_or_not() -> None:
    for power_off, later in itertools.product(POWER_OFF, ("guest does what it was asked", "long passes")):
        world = World(power_off, "no agent", Restart.ON_FAILURE)
        for what in ("stop", "start", later):
            world.happens(what)
        assert world.run_state == "running" and not world.requests.stopping


def test_a_guest_that_suspends_itself_is_woken_and_one_that_is_to_stop_is_asked_to_first() -> None:
    world = World("later", "no agent", Restart.ON_FAILURE)
    world.happens("guest suspends")
    assert world.run_state == "running"
    spec = msgspec.structs.replace(world.spec, power=Power.STOPPED)
    assert decide(spec, Situation("suspended")) is Step.POWER_DOWN
    assert decide(spec, Situation("suspended", stopping_s=float(spec.stop_timeout_s))) is Step.KILL
    assert decide(msgspec.structs.replace(spec, stop_timeout_s=0), Situation("suspended")) is Step.KILL
    for power in (Power.RUNNING, Power.PAUSED):
        for asked in ({}, {"resets": 1}, {"reboots": 1}):
            assert decide(msgspec.structs.replace(spec, power=power, **asked), Situation("suspended")) is Step.WAKE


def test_what_a_guest_takes_long_for_is_said_once_it_has_taken_long() -> None:
    requests, spec = PowerRequests(), VmSpec(image="tiny", power=Power.STOPPED, stop_timeout_s=60)
    requests.asks(Step.POWER_DOWN, 100.0)
    assert requests.lacks(spec, 109.9) == ("", None) and requests.next_look_s(spec, 100.0) == 10.0
    assert requests.lacks(spec, 110.0)[1] is WaitCode.GUEST_SHUTS_DOWN and requests.next_look_s(spec, 110.0) == 50.0
    quick = msgspec.structs.replace(spec, stop_timeout_s=5)
    assert requests.next_look_s(quick, 100.0) == 5.0
    requests = PowerRequests()
    requests.recall(AnewAsked(1, UNIX_S), 100.0, UNIX_S)
    assert requests.lacks(spec, 105.0) == ("", None) and requests.lacks(spec, 111.0)[1] is WaitCode.GUEST_REBOOTS
    assert requests.next_look_s(spec, 111.0) == limits.REBOOT_S_MAX - 11.0


def test_a_guest_that_ignored_a_revoked_stop_may_power_itself_off_later() -> None:
    world = World("never", "no agent", Restart.ON_FAILURE)
    for what in ("stop", "start", "long passes", "guest powers off"):
        world.happens(what)
    assert world.run_state == "absent" and world.record.halted_at_start == world.spec.starts


def test_a_second_stop_has_its_whole_grace() -> None:
    world = World("never", "no agent", Restart.ON_FAILURE)
    world.happens("stop")
    world.now += 14.0
    for what in ("start", "stop"):
        world.happens(what)
    assert world.requests.situation(world.run_state, world.record, world.now).stopping_s == 0.0
