"""Leases: for how long nodes run highly available VMs without a word from the control plane, and who may take over.

Histories of failures, with the agent's and the server's own code, are in ``tests/integration/test_ownership.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.agent.host.lease import NodeLease, now
from novacron.model.lease import (
    CLOCK_SAMPLES,
    LEASE_S,
    SILENT_AFTER_S,
    Beats,
    ClockSkew,
    Lease,
    majority_is_silent,
    may_take_over,
)
from novacron.qemu import lease_guard

NODES = [f"n{number}" for number in range(7)]
groups = st.sets(st.sampled_from(NODES))


@given(groups, groups)
def test_both_sides_of_a_partition_are_never_allowed_to_run_a_vm(one: set[str], other: set[str]) -> None:
    for voters in (NODES, NODES[:4], NODES[:2], NODES[:1]):
        if not one & other & set(voters):
            assert not (majority_is_silent(one, voters) and may_take_over(other, voters))


def test_a_lease_lasts_from_when_its_heartbeat_was_sent() -> None:
    lease = Lease(100.0)
    assert not lease.valid(100.0) and not lease.silent(100.0 + SILENT_AFTER_S), "who knows nothing is not silent yet"
    number = lease.beat(101.0)
    lease.beaten(number, 105.0)
    assert lease.valid(101.0 + LEASE_S - 0.1) and not lease.valid(101.0 + LEASE_S)
    assert lease.silent(101.1 + SILENT_AFTER_S)
    lease.beaten(number + 5, 106.0)
    assert lease.deadline == 101.0 + LEASE_S, "nothing that was not sent is acknowledged"


def test_a_majority_that_hears_nothing_lets_it_go_on_and_never_begins_anew() -> None:
    lease = Lease(0.0)
    lease.voters_next = ("a", "b", "c")
    lease.beaten(lease.beat(1.0), 1.0)
    assert lease.voters == ("a", "b", "c")
    assert not lease.may_go_on({"a"}, 10.0, 11.0)
    assert lease.may_go_on({"a", "b"}, 13.0, 14.0) and lease.valid(19.9) and not lease.valid(20.1)
    lease.voters_next = ("a", "x", "y")
    assert not lease.may_go_on({"a", "b"}, 14.0, 15.0), "nor would those that will count, allow it"
    assert not lease.may_go_on({"a", "b", "x", "y"}, 20.5, 21.0), "it is over"


def test_voters_count_of_which_the_control_plane_may_have_heard(tmp_path: Path) -> None:
    """What was sent may have arrived, acknowledged or not."""
    lease = Lease(0.0)
    lease.voters_next = ("a", "b", "c")
    lease.beaten(lease.beat(1.0), 1.0)
    lease.voters_next = ("x", "y", "z")
    lease.beat(2.0)  # its acknowledgement is lost
    lease.connected()
    lease.voters_next = ("d", "e", "f")
    assert lease.voters_known() == (("a", "b", "c"), ("x", "y", "z"))
    every = {"a", "b", "x", "y", "d", "e"}
    assert lease.may_go_on(every, 9.0, 10.0)
    for voter in sorted(every):
        assert not lease.may_go_on(every - {voter}, 9.0, 10.0)
    lease.beaten(lease.beat(11.0), 11.0)
    assert lease.voters_known() == (("d", "e", "f"),) and lease.may_go_on({"d", "e"}, 20.0, 21.0)
    lease.voters_next = ()
    lease.beat(22.0)
    lease.voters_next = ("d", "e", "f")
    assert not lease.may_go_on({"d", "e", "f"}, 22.0, 23.0), "it may know of none, whom it need not ask"


def test_the_control_plane_knows_until_when_a_node_surely_hears_it() -> None:
    beats = Beats()
    assert beats.hears_until(0) is None
    beats.acknowledge(1, 0, 10.0)
    assert beats.hears_until(1) is None
    beats.acknowledge(2, 1, 13.0)
    assert beats.hears_until(2) == 10.0 + SILENT_AFTER_S
    beats.acknowledge(3, 1, 16.0)
    assert beats.hears_until(3) == 10.0 + SILENT_AFTER_S, "it was sent after the first one's acknowledgement only"


def test_what_outlives_the_agent_reads_the_lease_and_no_other_boots(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    assert not lease_guard.valid(str(path))
    lease = NodeLease(path)
    assert not lease.valid() and not lease_guard.valid(str(path))
    lease.beaten(lease.rule.beat(now()))
    assert lease.valid() and lease_guard.valid(str(path)) and NodeLease(path).valid(), "a new agent goes on with it"
    boot, rest = path.read_text().split(" ", 1)
    path.write_text(f"{boot[:-1]}x {rest}")
    assert not lease_guard.valid(str(path)) and not NodeLease(path).valid()
    path.write_text("nonsense")
    assert not lease_guard.valid(str(path))


def test_a_clock_counts_as_wrong_only_by_more_than_a_message_may_take() -> None:
    def heard(stored_s: float, *ahead_s: float) -> float | None:
        clock, found = ClockSkew(stored_s), None
        for second, ahead in enumerate(ahead_s):
            found = clock.differs(1000.0 + second + ahead, 1000.0 + second)
        return found

    assert ClockSkew(9.0).differs(0.0, 1000.0) is None, "it has not been told"
    assert heard(0.0, *[0.3] * CLOCK_SAMPLES) is None and heard(0.0, *[-0.3] * CLOCK_SAMPLES) is None
    assert heard(0.0, *[90.04] * CLOCK_SAMPLES) == 90.0 and heard(0.0, *[-3.0] * CLOCK_SAMPLES) == -3.0
    assert heard(-3.0, *[-3.2] * CLOCK_SAMPLES) is None, "that is known"
    assert heard(-3.0, *[0.1] * CLOCK_SAMPLES) == 0.0, "it is right again"


def test_messages_that_are_late_make_no_clock_late() -> None:
    clock = ClockSkew(0.0)
    for second in range(100):
        delay_s = 0.01 if second % CLOCK_SAMPLES == 0 else 3.0
        assert clock.differs(1000.0 + second, 1000.0 + second + delay_s) is None


@pytest.mark.parametrize("deadline", ["inf", "nan", "1e300", "-inf", "far"])
def test_a_lease_that_claims_more_than_any_lasts_is_none(tmp_path: Path, deadline: str) -> None:
    path = tmp_path / "lease"
    text = str(now() + 3600) if deadline == "far" else deadline
    for heard_at in (str(now()), "inf"):
        path.write_text(f"{lease_guard.boot_id()} {text} {heard_at}".ljust(95) + "\n")
        assert not lease_guard.valid(str(path))
        assert not NodeLease(path).valid()
