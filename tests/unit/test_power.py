"""What an agent does next with a VM that it may run."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from novacron.agent.vm.power import STATES, Situation, Step, backoff_s, decide
from novacron.model import limits
from novacron.model.vm import Power, Restart, VmSpec

RUN_STATES = [
    *sorted(STATES.keys() - {"finish-migrate", "save-vm"}),
    "inmigrate",
    "io-error",
    "internal-error",
    "guest-panicked",
    "watchdog",
    "unresponsive",
]
"""All but those that QEMU leaves by itself within moments."""

specs = st.builds(
    VmSpec,
    image=st.just("tiny"),
    power=st.sampled_from(Power),
    starts=st.integers(0, 3),
    reboots=st.integers(0, 3),
    stop_timeout_s=st.integers(0, 30),
    restart=st.sampled_from(Restart),
)


def after(step: Step, run_state: str) -> str:
    """Return QEMU's state once ``step`` is done."""
    match step:
        case Step.START | Step.CONTINUE | Step.RESET | Step.WAKE:
            return "running"
        case Step.PAUSE:
            return "paused"
        case Step.MAKE_ROOM:
            return "running"
        case Step.KILL:
            return "absent"
    return run_state


@given(specs, st.sampled_from(RUN_STATES), st.none() | st.integers(0, 3), st.integers(0, 3))
def test_power_converges_to_the_spec(spec: VmSpec, run_state: str, halted_at_start: int | None, reboots: int) -> None:
    # The mark of a guest that powered itself off is cleared when it is started: no running guest has it.
    assume(run_state in ("absent", "shutdown") or halted_at_start != spec.starts)
    stopping_s = None
    for _ in range(12):
        step = decide(
            spec, Situation(run_state, halted_at_start=halted_at_start, reboots=reboots, stopping_s=stopping_s)
        )
        if step is Step.NOTHING and stopping_s is None:
            break
        run_state = after(step, run_state)
        if step in (Step.RESET, Step.REBOOT):
            reboots = spec.reboots
        if step is Step.MARK_HALTED:
            halted_at_start = spec.starts
        if step is Step.START:
            halted_at_start, reboots = None, spec.reboots
        if step is Step.POWER_DOWN:
            stopping_s = 0.0
        elif stopping_s is not None:
            stopping_s += spec.stop_timeout_s
        if run_state == "absent":
            stopping_s = None
    else:
        pytest.fail(f"it never rests: {spec}, {run_state}")
    off = spec.power is Power.STOPPED or halted_at_start == spec.starts
    allowed = {"absent"} if off else {"paused"} if spec.power is Power.PAUSED else {"running"}
    if spec.power is Power.PAUSED and not off:
        allowed = {"paused", "prelaunch", "postmigrate"}
    assert run_state in allowed


@given(specs, st.integers(0, 3))
def test_a_vm_that_is_to_be_off_is_never_started(spec: VmSpec, reboots: int) -> None:
    if spec.power is Power.STOPPED:
        step = decide(spec, Situation("absent", halted_at_start=None, reboots=reboots))
        assert step is Step.NOTHING


def test_a_guest_that_powered_itself_off_stays_off_until_started_again() -> None:
    spec = VmSpec(image="tiny", starts=1)
    assert decide(spec, Situation("shutdown", halted_at_start=None, reboots=0)) is Step.MARK_HALTED
    assert decide(spec, Situation("shutdown", halted_at_start=1, reboots=0)) is Step.KILL
    assert decide(spec, Situation("absent", halted_at_start=1, reboots=0)) is Step.NOTHING
    again = VmSpec(image="tiny", starts=2)
    assert decide(again, Situation("absent", halted_at_start=1, reboots=0)) is Step.START


def test_a_guest_that_powered_itself_off_restarts_where_its_spec_says_so() -> None:
    spec = VmSpec(image="tiny", starts=1, restart=Restart.ALWAYS)
    assert decide(spec, Situation("shutdown", halted_at_start=None, reboots=0)) is Step.KILL
    assert decide(spec, Situation("absent", halted_at_start=None, reboots=0)) is Step.START
    off = VmSpec(image="tiny", power=Power.STOPPED, restart=Restart.ALWAYS)
    assert decide(off, Situation("absent", halted_at_start=None, reboots=0)) is Step.NOTHING


def test_a_guest_that_was_handed_over_begins_anew_where_that_was_asked_for() -> None:
    """Otherwise it would write what it remembers onto disks that it may have changed elsewhere."""
    left = Situation("postmigrate", resets=2)
    assert decide(VmSpec(image="tiny", resets=2), left) is Step.CONTINUE
    assert decide(VmSpec(image="tiny", resets=3), left) is Step.KILL
    assert decide(VmSpec(image="tiny", resets=3), Situation("paused", resets=2)) is Step.CONTINUE


def test_a_stop_is_graceful_first_and_forced_after_its_time() -> None:
    spec = VmSpec(image="tiny", power=Power.STOPPED, stop_timeout_s=10)
    assert decide(spec, Situation("running", halted_at_start=None, reboots=0)) is Step.POWER_DOWN
    assert decide(spec, Situation("running", halted_at_start=None, reboots=0, stopping_s=9.9)) is Step.NOTHING
    assert decide(spec, Situation("running", halted_at_start=None, reboots=0, stopping_s=10)) is Step.KILL


def test_restarts_after_crashes_back_off_to_a_limit() -> None:
    waits = [backoff_s(crashes) for crashes in range(1, 12)]
    assert waits[0] == 0
    assert waits == sorted(waits)
    assert waits[-1] == limits.RESTART_BACKOFF_S_MAX
