"""Rollouts that could not go back, whose journal can't be written, or whose server never becomes ready."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from novacron.rollout import probes
from novacron.rollout.balancer import HAProxy, Traffic, Weights
from novacron.rollout.engine import RolloutEngine
from novacron.rollout.journal import RolloutJournal
from novacron.rollout.model import Colour, Rollout, RolloutError, RolloutState, Share, StepFailed, Strategy
from novacron.rollout.options import RolloutOptions
from novacron.rollout.orders import Orders
from novacron.rollout.work import RolloutParts

OPTIONS = RolloutOptions(smoke=False, node_backends="", health_tries=1, drain=0, check_every=0.01)
URLS = {OPTIONS.url(colour): colour for colour in Colour}


class Servers:
    """Two servers that run, or do not."""

    def __init__(self) -> None:
        self.ready, self.runs = set(Colour), set(Colour)

    def install(self, colour: Colour, version: str) -> None: ...

    def version(self, colour: Colour) -> str:
        return "1" if colour is Colour.BLUE else "2"

    def start(self, colour: Colour) -> None:
        self.runs.add(colour)

    def stop(self, colour: Colour, limit_s: float) -> None:
        self.runs.discard(colour)

    def running(self, colour: Colour) -> bool:
        return colour in self.runs

    def last_words(self, colour: Colour) -> str:
        return f"{colour} can't read its tables"


class Balancer(HAProxy):
    """Has the weights that it was told. ``full``: its file can't be written."""

    def __init__(self) -> None:
        super().__init__(Path("none"), Path("none"), "true", 0.0)
        self.weights, self.full = {Colour.BLUE: 100, Colour.GREEN: 0}, False

    def shift(self, backends: Sequence[str], weights: Weights) -> None:
        if self.full:
            raise StepFailed("haproxy-config: can't change it: no space left on device")
        self.weights.update(weights)

    def shift_running(self, backends: Sequence[str], weights: Weights) -> None:
        self.weights.update(weights)

    def weight(self, backend: str, colour: Colour) -> int:
        return self.weights[colour]

    def verify(self, backends: Sequence[str], weights: Weights) -> None:
        if self.weights != dict(weights):
            raise StepFailed("other weights")

    def traffic(self, backend: str) -> dict[Colour, Traffic]:
        return dict.fromkeys(Colour, Traffic(0, 0, 0, up=True))


class FullJournal(RolloutJournal):
    """A journal whose disk is full from its ``last``-th record on."""

    def __init__(self, directory: Path, last: int) -> None:
        super().__init__(directory)
        self.left = last

    def save(self, rollout: Rollout) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")
        super().save(rollout)


class World:
    """Servers and a balancer, and a journal in a folder."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.servers, self.balancer, self.said = Servers(), Balancer(), list[str]()
        self.parts = RolloutParts(OPTIONS, self.servers, self.balancer, None)
        self.orders = Orders(RolloutOptions(state_dir=directory, watch=0), self.said.append)
        self.orders.journal.open()
        monkeypatch.setattr(Orders, "_parts", lambda _: self.parts)
        monkeypatch.setattr(
            probes, "why_not_ready", lambda url, ca: "" if URLS[url] in self.servers.ready else "it answers 503"
        )

    def failed(self) -> Rollout:
        """A rollout that goes back to a server that does not start over the new schema."""
        self.servers.ready = {Colour.GREEN}
        self.balancer.weights = {Colour.BLUE: 0, Colour.GREEN: 100}
        rollout = new(RolloutState.GOING_BACK, "restore")
        return RolloutEngine(self.orders.journal, self.parts, self.said.append).run(rollout)


def new(state: RolloutState = RolloutState.RUNNING, step: str = "") -> Rollout:
    shares = [Share(10, 1.0), Share(100, 0.0)]
    return Rollout(
        7, Strategy.CANARY, "2", Colour.GREEN, shares, 1.0, version_before="1", state=state, step=step,
        reason="it is slow" if step else "",
    )  # fmt: skip


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_a_rollout_that_could_not_go_back_says_what_is_ready_and_why_the_old_one_is_not(world: World) -> None:
    rollout = world.failed()
    assert rollout.state is RolloutState.FAILED
    assert world.said[-1].endswith("failed: 2 on green is ready")
    assert "its log ends with:\nblue can't read its tables" in rollout.reason


def test_accepting_what_serves_after_a_failure_lets_the_next_rollout_begin(world: World) -> None:
    world.failed()
    with pytest.raises(RolloutError, match="novacron rollout accept keeps what serves"):
        world.orders.start(Strategy.BLUE_GREEN, "3")
    with pytest.raises(RolloutError, match="novacron rollout accept keeps what serves"):
        world.orders.resume()
    accepted = world.orders.accept()
    assert accepted.state is RolloutState.DONE and world.orders.journal.last() == accepted
    assert (accepted.serving, accepted.serving_version) == (Colour.GREEN, "2")
    assert world.balancer.weights == {Colour.BLUE: 0, Colour.GREEN: 100}
    assert world.servers.runs == {Colour.GREEN}
    world.servers.ready = set(Colour)
    following = world.orders.start(Strategy.BLUE_GREEN, "3")
    assert (following.colour, following.version_before) == (Colour.BLUE, "2")


def test_accepting_keeps_the_old_version_if_that_is_the_one_that_serves(world: World) -> None:
    world.failed()
    world.servers.ready = {Colour.BLUE}
    accepted = world.orders.accept()
    assert accepted.state is RolloutState.ROLLED_BACK
    assert (accepted.serving, accepted.serving_version) == (Colour.BLUE, "1")
    assert world.balancer.weights == {Colour.BLUE: 100, Colour.GREEN: 0}


def test_of_two_servers_that_are_ready_the_one_with_the_requests_is_accepted(world: World) -> None:
    world.failed()
    world.servers.ready = set(Colour)
    world.balancer.weights = {Colour.BLUE: 90, Colour.GREEN: 10}
    assert world.orders.accept().serving is Colour.BLUE


def test_nothing_is_accepted_while_no_server_is_ready_or_no_rollout_has_failed(world: World) -> None:
    with pytest.raises(RolloutError, match="no rollout has failed"):
        world.orders.accept()
    world.failed()
    world.servers.ready = set()
    with pytest.raises(RolloutError, match="no server is ready"):
        world.orders.accept()
    last = world.orders.journal.last()
    assert last is not None and last.state is RolloutState.FAILED


@pytest.mark.parametrize("full", [False, True])
def test_a_new_version_loses_its_requests_when_its_journal_can_not_be_written(
    world: World, tmp_path: Path, full: bool
) -> None:
    journal = FullJournal(tmp_path, 6)  # install, start, health, smoke, share-10, watch-10; then the first check
    seen = list[int]()

    def say(line: str) -> None:
        seen.append(world.balancer.weights[Colour.GREEN])
        world.said.append(line)
        world.balancer.full = full and line.startswith("share-10")

    rollout = new()
    with pytest.raises(OSError, match="No space left"):
        RolloutEngine(journal, world.parts, say).run(rollout)
    assert rollout.step == "watch-10" and max(seen) == 10, "it had requests"
    assert world.balancer.weights == {Colour.BLUE: 100, Colour.GREEN: 0}
    assert "the journal can't be written" in world.said[-1]


def test_a_new_version_keeps_its_requests_if_the_old_one_could_not_answer_them(world: World, tmp_path: Path) -> None:
    world.servers.ready = {Colour.GREEN}
    world.balancer.weights = {Colour.BLUE: 90, Colour.GREEN: 10}
    with pytest.raises(OSError, match="No space left"):
        RolloutEngine(FullJournal(tmp_path, 0), world.parts, world.said.append).run(new(step="watch-10"))
    assert world.balancer.weights == {Colour.BLUE: 90, Colour.GREEN: 10}
    assert "blue is not ready" in world.said[-1]
