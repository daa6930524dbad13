"""Leases: for how long nodes run highly available VMs without a word from the control plane, and who may take over."""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from novacron.agent.host.lease import NodeLease, now
from novacron.model import limits
from novacron.model.lease import (
    CLOCK_SAMPLES,
    LEASE_S,
    MARGIN_S,
    POLL_S,
    SILENT_AFTER_S,
    STEADY_S,
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


def test_the_control_plane_knows_until_when_a_node_surely_hears_it() -> None:
    beats = Beats()
    assert beats.hears_until(0) is None
    beats.acknowledge(1, 0, 10.0)
    assert beats.hears_until(1) is None
    beats.acknowledge(2, 1, 13.0)
    assert beats.hears_until(2) == 10.0 + SILENT_AFTER_S
    beats.acknowledge(3, 1, 16.0)
    assert beats.hears_until(3) == 10.0 + SILENT_AFTER_S, "it was sent after the first one's acknowledgement only"


TICK_S = 0.25
KEEPER_S = 0.25


Session = tuple[int, Beats]


class Beat(NamedTuple):
    """A heartbeat on its way, with the session that it belongs to."""

    number: int
    acknowledged: int
    steady_s: float
    voters: tuple[str, ...]
    session: Session | None


class Ack(NamedTuple):
    """The answer to a heartbeat on its way."""

    number: int
    session: Session


class World:
    """Nodes, a control plane, and links that fail in any direction. ``owner`` may run the one VM."""

    def __init__(self, seed: int, count: int) -> None:
        self.random = random.Random(seed)
        self.names = NODES[:count]
        self.now = 1000.0
        self.leases = {name: Lease(self.now) for name in self.names}
        self.up = {(a, b): True for a in (*self.names, "server") for b in (*self.names, "server")}
        self.server_up = True
        self.owner = self.names[0]
        self.running: str | None = None
        self.told: dict[str, bool] = dict.fromkeys(self.names, False)
        self.was_valid: dict[str, bool] = dict.fromkeys(self.names, False)
        self.generation = dict.fromkeys(self.names, 0)
        self.session: dict[str, tuple[int, Beats]] = {}
        self.stored: dict[str, tuple[float, float | None, float, tuple[str, ...]]] = {}
        self.mail: list[tuple[float, object]] = []
        self.polls: dict[str, tuple[float, float, set[str]]] = {}
        self.moves = 0
        self.stops = 0

    def delay(self) -> float:
        return self.random.choice([0.0, 0.0, 0.1, 0.5, 2.0])

    def can(self, a: str, b: str) -> bool:
        return self.up[a, b] and (self.server_up or "server" not in (a, b))

    def connect(self, name: str) -> None:
        if self.can(name, "server") and self.can("server", name):
            self.leases[name].connected()
            self.session[name] = self.generation[name], Beats()
            renewed = self.stored.get(name)
            self.stored[name] = (self.now, *renewed[1:]) if renewed else (self.now, None, self.now, ())
            self.leases[name].voters_next = tuple(self.names)
            self.told[name] = self.owner == name

    def beat(self, name: str) -> None:
        lease = self.leases[name]
        number = lease.beat(self.now)
        said = Beat(number, lease.acknowledged, lease.steady_s(self.now), lease.voters_next, self.session.get(name))
        if self.can(name, "server"):
            self.mail.append((self.now + self.delay(), ("beat", name, said)))

    def deliver(self, item: tuple[object, ...]) -> None:
        kind, name, said = item
        assert isinstance(name, str)
        if kind == "ack":
            assert isinstance(said, Ack)
            if self.session.get(name) is said.session and self.can("server", name):
                self.leases[name].beaten(said.number, self.now)
            return
        assert isinstance(said, Beat)
        number, acknowledged, steady_s, voters, session = said
        if not self.server_up or session is None or self.session.get(name) is not session:
            return
        generation, beats = session
        if generation != self.generation[name]:
            self.session.pop(name, None)
            return
        self.stored[name] = self.now, beats.hears_until(acknowledged), self.now - steady_s, voters
        beats.acknowledge(number, acknowledged, self.now)
        self.mail.append((self.now + self.delay(), ("ack", name, Ack(number, session))))

    def poll(self, name: str) -> None:
        lease = self.leases[name]
        if name in self.polls:
            asked_at, until, silent = self.polls[name]
            if self.now >= until:
                del self.polls[name]
                if lease.silent(self.now):
                    lease.may_go_on(silent, asked_at, self.now)
        elif lease.silent(self.now):
            silent = {name} | {
                other
                for other in self.names
                if self.can(name, other) and self.can(other, name) and self.leases[other].silent(self.now)
            }
            self.polls[name] = self.now, self.now + self.delay(), silent

    def keep(self) -> None:
        """What starts and ends the VM on each node."""
        for name in self.names:
            lease = self.leases[name]
            valid = lease.valid(self.now)
            if self.was_valid[name] and not valid:
                self.told[name] = False
                self.session.pop(name, None)
            self.was_valid[name] = valid
            if self.running == name and self.now > lease.deadline + KEEPER_S:
                self.running = None
                self.stops += 1
            if self.told[name] and lease.valid(self.now) and self.running != name:
                assert self.running is None, f"{self.now}: {self.running} and {name} run the VM"
                self.running = name

    def control(self) -> None:
        if not self.server_up or self.owner not in self.stored:
            return
        renewed_at, _, _, voters = self.stored[self.owner]
        if self.now - renewed_at <= LEASE_S + MARGIN_S:
            return
        steady = {
            name
            for name, (_, hears_until, since, _) in self.stored.items()
            if hears_until is not None and hears_until > self.now and since < self.now - STEADY_S
        }
        fit = [name for name in self.names if name in steady and name != self.owner]
        if may_take_over(steady, voters) and fit:
            self.generation[self.owner] += 1
            self.owner = self.random.choice(fit)
            self.told[self.owner] = True
            self.moves += 1

    def fail(self) -> None:
        """Let something fail, or everything be well again."""
        what = self.random.random()
        if what < 0.25:
            self.up = dict.fromkeys(self.up, True)
            self.server_up = True
        elif what < 0.4:
            self.server_up = not self.server_up
            if not self.server_up:
                self.session.clear()
        elif what < 0.7:
            side = {name for name in (*self.names, "server") if self.random.random() < 0.5}
            self.up = {(a, b): (a in side) == (b in side) for a, b in self.up}
        else:
            for pair in self.random.sample(sorted(self.up), 3):
                self.up[pair] = not self.up[pair]

    def run(self, seconds: float) -> None:
        offset = {name: self.random.randrange(12) for name in self.names}
        for tick in range(int(seconds / TICK_S)):
            self.now += TICK_S
            due = [item for at, item in self.mail if at <= self.now]
            self.mail = [(at, item) for at, item in self.mail if at > self.now]
            for item in due:
                self.deliver(item)  # type: ignore[arg-type]
            for name in self.names:
                if name not in self.session and (tick + offset[name]) % 4 == 0:
                    self.connect(name)
                if (tick + offset[name]) % int(limits.HEARTBEAT_INTERVAL_S / TICK_S) == 0:
                    self.beat(name)
                if (tick + offset[name]) % int(POLL_S / TICK_S) == 0 or name in self.polls:
                    self.poll(name)
            self.keep()
            if tick % 4 == 0:
                self.control()
            self.keep()
            if tick > 120 and self.random.random() < 0.02:
                self.fail()


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(2, 5))
@example(1, 3)
def test_whatever_fails_a_vm_never_runs_twice(seed: int, count: int) -> None:
    World(seed, count).run(300)


def test_failures_do_move_vms_and_a_control_plane_that_is_away_stops_none() -> None:
    worlds = [World(seed, 3) for seed in range(40)]
    for world in worlds:
        world.run(300)
    assert sum(world.moves for world in worlds) > 10
    calm = World(1, 3)
    calm.fail = lambda: None  # type: ignore[method-assign]
    calm.run(60)
    calm.server_up = False
    calm.session.clear()
    calm.run(120)
    assert (calm.moves, calm.stops, calm.running) == (0, 0, "n0")
    alone = World(2, 3)
    alone.fail = lambda: None  # type: ignore[method-assign]
    alone.run(60)
    alone.up = {(a, b): a == b or "n0" not in (a, b) for a, b in alone.up}
    alone.run(LEASE_S + MARGIN_S + 5)
    assert alone.moves == 1 and alone.running in ("n1", "n2"), "who is cut off gives its VM up"


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
