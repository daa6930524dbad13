"""Rollouts of agents: waves, gates, ways back, rollouts whose process is killed at any moment, what is ordered."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from novacron.cli.rollouts import app
from novacron.rollout.agents.fleet import failures, guest_seen
from novacron.rollout.agents.gates import ActionFailed, GuestSeen, WaveLimits, stopped
from novacron.rollout.agents.model import NodeStage, in_waves, wave_ends
from novacron.rollout.agents.orders import AgentOrders
from novacron.rollout.agents.packages import agent_version
from novacron.rollout.journal import OperatorAsk, OperatorRequest, RolloutJournal
from novacron.rollout.model import Colour, Rollout, RolloutError, RolloutState, Strategy
from novacron.rollout.options import RolloutOptions
from novacron.rollout.orders import Orders
from tests.support.upgraded_nodes import NEW, OLD, SETTINGS, Killed, UpgradedNodes, WaveWorld


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about what a power cut leaves: that is tested where files are written."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def world(tmp_path: Path) -> WaveWorld:
    return WaveWorld(tmp_path)


def stages(rollout: object) -> dict[str, NodeStage]:
    return {node.name: node.stage for node in rollout.nodes}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "nodes", "ends"),
    [
        ("1,10%,50%,100%", 2000, [1, 200, 1000, 2000]),
        ("1,10%,50%,100%", 3, [1, 2, 3]),
        ("1,10%,50%,100%", 1, [1]),
        ("100%", 7, [7]),
        ("3, 5, 100%", 4, [3, 4]),
    ],
)
def test_waves_grow_to_all_nodes_and_none_is_empty(text: str, nodes: int, ends: list[int]) -> None:
    assert wave_ends(text, nodes) == ends


@pytest.mark.parametrize("text", ["", "1,10%", "50%,10%,100%", "0,100%", "x,100%", "200%,100%", "100", "10%,10%,100%"])
def test_waves_that_do_not_rise_to_all_nodes_are_refused(text: str) -> None:
    with pytest.raises(RolloutError, match=r"^waves: .* write it like 1,10%,50%,100%"):
        wave_ends(text, 100)


@given(st.integers(1, 500), st.lists(st.integers(1, 99), max_size=5, unique=True))
def test_every_node_is_in_exactly_one_wave(count: int, percents: list[int]) -> None:
    text = ",".join([*(f"{percent}%" for percent in sorted(percents)), "100%"])
    records = in_waves([f"n{number}" for number in range(count)], text)
    assert [record.name for record in records] == [f"n{number}" for number in range(count)]
    waves = [record.wave for record in records]
    assert waves == sorted(waves) and set(waves) == set(range(1, max(waves) + 1))


def test_a_good_version_comes_to_all_nodes_wave_by_wave(world: WaveWorld) -> None:
    seen: list[tuple[str, int]] = []
    world.at.after_install = lambda node, version: seen.append((node, len(world.at.called("install"))))
    rollout = world.run()
    assert rollout.state is RolloutState.DONE, world.said
    assert world.versions() == {NEW}
    assert world.at.called("install")[0] == "n00" and len(world.at.called("install")) == 6
    assert next(iter(seen)) == ("n00", 1)
    steps = list(dict.fromkeys(event.step for event in rollout.events))
    assert steps == [f"{step}-{wave}" for wave in (1, 2, 3) for step in ("prepare", "install", "watch")]
    assert set(stages(rollout).values()) == {NodeStage.UPGRADED}
    assert not world.at.called("drain")


def test_a_host_that_is_off_is_left_out_and_named(world: WaveWorld) -> None:
    world.at.off = {"n03"}
    rollout = world.run()
    assert rollout.state is RolloutState.DONE
    assert stages(rollout)["n03"] is NodeStage.LEFT_OUT and world.at.package["n03"] == OLD
    assert any("left out: n03 (it was off: is off)" in line for line in world.said)
    assert sorted(set(world.at.called("install"))) == [name for name in world.names if name != "n03"]


def test_a_host_that_goes_off_before_its_turn_is_left_out(world: WaveWorld) -> None:
    def lose_another(node: str, version: str) -> None:
        if node == "n01":
            world.at.off.add("n04")

    world.at.after_install = lose_another
    rollout = world.run(SETTINGS._replace(at_once=1))
    assert rollout.state is RolloutState.DONE, rollout.reason
    assert stages(rollout)["n04"] is NodeStage.LEFT_OUT and world.at.package["n04"] == OLD


def test_a_node_that_has_the_version_is_not_touched(world: WaveWorld) -> None:
    world.at.package["n00"] = NEW
    assert world.run().state is RolloutState.DONE
    assert "n00" not in world.at.called("install")


def _link_stays_away(at: UpgradedNodes, node: str) -> None:
    at.off.add(node)


def _guest_stops(at: UpgradedNodes, node: str) -> None:
    at.guest[f"vm-{node}"] = GuestSeen(f"web-{node}", node, 0, "stopped")


def _guest_crashes(at: UpgradedNodes, node: str) -> None:
    at.guest[f"vm-{node}"] = GuestSeen(f"web-{node}", node, 1, "running")


def _guest_unknown(at: UpgradedNodes, node: str) -> None:
    at.guest[f"vm-{node}"] = GuestSeen(f"web-{node}", node, 0, "unknown")


def _action_fails(at: UpgradedNodes, node: str) -> None:
    at.failed.append(ActionFailed(f"vm-{node}", f"web-{node}", "SnapshotFailed", "no space"))


def _agent_has_other_version(at: UpgradedNodes, node: str) -> None:
    at.package[node] = "1.1.1-1+deb12"


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (_link_stays_away, "is not connected"),
        (_guest_stops, "VM web-n02 on n02 does not run any more: it is stopped"),
        (_guest_crashes, "VM web-n02 on n02 crashed"),
        (_guest_unknown, "it is unknown"),
        (_action_fails, "SnapshotFailed of web-n02: no space"),
        (_agent_has_other_version, "has version 1.1.1"),
    ],
)
def test_a_wave_that_fails_goes_back_by_itself(
    world: WaveWorld, fault: Callable[[UpgradedNodes, str], None], why: str
) -> None:
    def after(node: str, version: str) -> None:
        if node == "n02" and version.startswith(NEW):
            fault(world.at, node)
        elif node == "n02":
            world.at.off.discard(node)

    world.at.after_install = after
    rollout = world.run(SETTINGS._replace(at_once=1))
    assert rollout.state is RolloutState.ROLLED_BACK, world.said
    assert why in rollout.reason and rollout.went_back_s > 0
    assert {agent_version(version) for version in world.versions()} == {"1.0.0"}
    assert not {node for node in world.at.called("install") if node > "n02"}, "no later wave has begun"
    assert world.at.called("install")[-1] == "n00", "the wave that failed goes back first"


def test_a_node_that_falls_silent_while_a_wave_is_watched_sends_it_back(world: WaveWorld) -> None:
    engine = world.engine()
    looks = [0]
    nodes = world.at.nodes

    def fading() -> dict[str, object]:
        rollout = world.journal.last()
        if rollout is not None and rollout.step == "watch-1" and rollout.state is RolloutState.RUNNING:
            looks[0] += 1
            world.at.off.add("n00")
        else:
            world.at.off.discard("n00")
        return dict(nodes())

    world.at.nodes = fading  # type: ignore[method-assign, assignment]
    rollout = engine.run(world.new())
    assert looks[0] > 1 and rollout.state is RolloutState.ROLLED_BACK
    assert "node n00 has not been heard" in rollout.reason


def test_tolerated_failures_go_back_alone(world: WaveWorld) -> None:
    world.at.after_install = lambda node, version: (
        world.at.off.add(node) if node == "n02" and version.startswith(NEW) else world.at.off.discard(node)
    )
    rollout = world.run(SETTINGS._replace(gates=WaveLimits(1, 0, 0.05)))
    assert rollout.state is RolloutState.DONE, rollout.reason
    assert agent_version(world.at.package["n02"]) == "1.0.0" and stages(rollout)["n02"] is NodeStage.WENT_BACK


def test_a_node_that_can_not_go_back_is_named_and_the_others_go_back(world: WaveWorld) -> None:
    def after(node: str, version: str) -> None:
        if node == "n02":
            world.at.off.add(node)
            world.at.unreachable.add(node)

    world.at.after_install = after
    rollout = world.run()
    assert rollout.state is RolloutState.FAILED
    assert stages(rollout)["n02"] is NodeStage.STUCK
    assert {agent_version(world.at.package[name]) for name in world.names if name != "n02"} == {"1.0.0"}
    world.at.unreachable.clear()
    world.at.after_install = lambda node, version: world.at.off.discard(node)
    engine = world.engine()
    engine.turn(rollout, "aborted")
    assert engine.run(rollout).state is RolloutState.ROLLED_BACK
    assert {agent_version(version) for version in world.versions()} == {"1.0.0"}


def test_without_the_present_versions_package_nothing_begins(world: WaveWorld) -> None:
    for file in world.packages.glob(f"*{OLD}*"):
        file.unlink()
    rollout = world.run()
    assert rollout.state is RolloutState.ROLLED_BACK
    assert "packages: " in rollout.reason and "of version 1.0.0-1+deb12" in rollout.reason
    assert not world.at.called("install")


def test_drained_nodes_are_empty_while_host_and_agent_change_and_take_vms_again(world: WaveWorld) -> None:
    world.at.cordoned = {"n05"}
    rollout = world.run(SETTINGS._replace(at_once=1), drain=True, restart=True, system=("qemu-system-x86",))
    assert rollout.state is RolloutState.DONE, rollout.reason
    of_n1 = [call for call, node in world.at.calls if node == "n01" and call not in ("installed", "debian")]
    assert of_n1 == ["bring", "drain", "install", "upgrade qemu-system-x86", "restart", "uncordon"]
    assert world.at.cordoned == {"n05"}, "what an operator cordoned stays so"
    assert "n05" not in world.at.called("drain")


def test_a_host_that_an_operator_cordoned_with_its_vms_is_not_restarted(world: WaveWorld) -> None:
    world.at.cordoned = {"n04", "n05"}
    world.at.guest = {id: guest for id, guest in world.at.guest.items() if guest.node != "n04"}
    rollout = world.run(drain=True, restart=True)
    assert rollout.state is RolloutState.DONE, rollout.reason
    assert "n04" in world.at.called("restart") and "n05" not in world.at.called("restart")
    (left,) = [node for node in rollout.nodes if node.stage is NodeStage.LEFT_OUT]
    assert left.name == "n05" and "somebody has cordoned it with 1 VMs (web-n05) on it" in left.note


def test_an_abort_uncordons_what_was_drained(world: WaveWorld) -> None:
    def abort(call: str, node: str) -> bool:
        if (call, node) == ("drain", "n02"):
            world.journal.ask(OperatorRequest(1, OperatorAsk.ABORT, "me"))
        return False

    world.at.killed_at = abort
    rollout = world.run(SETTINGS._replace(at_once=1), drain=True)
    assert rollout.state is RolloutState.ROLLED_BACK and rollout.reason == "aborted by me"
    assert not world.at.cordoned
    assert {agent_version(version) for version in world.versions()} == {"1.0.0"}


MOMENTS = [
    (call, node)
    for node in ("n00", "n02")
    for call in ("debian", "installed", "bring", "drain", "install", "restart", "uncordon")
]


@pytest.mark.parametrize(("call", "node"), MOMENTS)
@pytest.mark.parametrize("back", [False, True])
def test_a_rollout_killed_in_a_step_goes_on_or_back(tmp_path: Path, call: str, node: str, back: bool) -> None:
    world = WaveWorld(tmp_path, 3)
    reached = [False]

    def kill(called: str, of: str) -> bool:
        if (called, of) == (call, node) and not reached[0]:
            reached[0] = True
            return True
        return False

    world.at.killed_at = kill
    with pytest.raises(Killed):
        world.run(SETTINGS._replace(at_once=1), drain=True, restart=True)
    assert reached[0]
    rollout = world.journal.last()
    assert rollout is not None and not rollout.ended
    engine = world.engine()
    if back:
        engine.turn(rollout, "aborted by me")
    ended = engine.run(rollout)
    assert ended.state is (RolloutState.ROLLED_BACK if back else RolloutState.DONE), ended.reason
    assert {agent_version(version) for version in world.versions()} == {"1.0.0" if back else "1.1.0"}
    assert not world.at.cordoned


@pytest.mark.parametrize("record", (2, 5, 8, 11, 14))
def test_a_rollout_whose_journal_fills_up_goes_on_later(tmp_path: Path, record: int) -> None:
    world = WaveWorld(tmp_path, 3)
    save, left = world.journal.save, [record]

    def full(rollout: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        save(rollout)  # type: ignore[arg-type]

    world.journal.save = full  # type: ignore[method-assign]
    try:
        ended = world.run()
    except OSError:
        rollout = world.journal.last()
        ended = world.engine().run(rollout if rollout is not None else world.new())
    assert ended.state is RolloutState.DONE, ended.reason
    assert {agent_version(version) for version in world.versions()} == {"1.1.0"}


def test_a_rollout_waits_while_it_is_paused(world: WaveWorld) -> None:
    begun: list[str] = []

    def after(node: str, version: str) -> None:
        begun.append(node)
        if node == "n00":
            world.journal.ask(OperatorRequest(1, OperatorAsk.PAUSE, "me"))

    world.at.after_install = after
    wait, paused = world.engine()._keeper.wait, [0]
    engine = world.engine()

    def counted(rollout: object, seconds: float) -> None:
        if rollout.state is RolloutState.PAUSED and begun == ["n00"]:  # type: ignore[attr-defined]
            paused[0] += 1
            if paused[0] == 5:
                world.journal.ask(OperatorRequest(1, OperatorAsk.RESUME, "me"))
        wait(rollout, min(seconds, 0.02))  # type: ignore[arg-type]

    engine._keeper.wait = counted  # type: ignore[method-assign]
    engine._steps._wait = counted
    rollout = engine.run(world.new())
    assert paused[0] >= 5 and rollout.state is RolloutState.DONE
    assert any("paused by me" in event.text for event in rollout.events)


def test_guests_that_their_users_end_count_as_nothing() -> None:
    before = {"a": GuestSeen("a", "n", 0, "running"), "b": GuestSeen("b", "n", 0, "running"),
              "c": GuestSeen("c", "n", 2, "stopped")}  # fmt: skip
    now = {"b": GuestSeen("b", "n", 0, "stopped", should_run=False), "c": GuestSeen("c", "n", 3, "failed")}
    assert stopped(before, now, last=True) == []
    now["b"] = GuestSeen("b", "n", 0, "starting")
    assert stopped(before, now, last=False) == []
    assert stopped(before, now, last=True) == ["VM b on n does not run any more: it is starting"]


@pytest.mark.parametrize(
    ("now", "noticed"),
    [
        (GuestSeen("a", "n", 0, "running", starts=1, pid=8), True),
        (GuestSeen("a", "n", 0, "running", starts=1, pid=7), False),
        (GuestSeen("a", "n", 0, "running", starts=2, pid=8), False),
        (GuestSeen("a", "m", 0, "running", starts=1, pid=8), False),
        (GuestSeen("a", "n", 0, "running", starts=1, pid=8, epoch=3), False),
        (GuestSeen("a", "n", 0, "running", starts=1), False),
    ],
    ids=["started again", "untouched", "started by its user", "moved", "moved and back", "its agent does not know yet"],
)  # fmt: skip
def test_a_guest_that_ended_and_was_started_again_is_noticed(now: GuestSeen, noticed: bool) -> None:
    """Its agent, which was away, counts no crash."""
    before = {"a": GuestSeen("a", "n", 0, "running", starts=1, pid=7)}
    assert stopped(before, {"a": now}, last=False) == (["VM a on n ended, and was started again"] if noticed else [])


def test_a_guest_that_powered_itself_off_is_not_wanted() -> None:
    vm = {"name": "a", "node": "n", "epoch": 1, "spec": {"power": "running", "starts": 2},
          "status": {"crashes": 0, "state": "stopped", "halted_at_start": 2, "pid": 7}}  # fmt: skip
    assert not guest_seen(vm).should_run
    vm["spec"] = {"power": "running", "starts": 3}
    assert guest_seen(vm).should_run


def test_only_failures_after_the_wave_began_count() -> None:
    events = [
        {"id": number, "object": "x", "name": "x", "reason": reason, "message": ""}
        for number, reason in ((9, "VmStarted"), (8, "MoveFailed"), (7, "DrainFailed"))
    ]
    assert [failure.reason for failure in failures(events, 7)] == ["MoveFailed"]


def _orders(world: WaveWorld, directory: Path, **more: object) -> AgentOrders:
    options = RolloutOptions(state_dir=directory, packages=world.packages, **more)  # type: ignore[arg-type]
    return AgentOrders(options, lambda: world.at, world.said.append)


def test_agents_and_servers_are_never_rolled_out_at_the_same_time(world: WaveWorld, tmp_path: Path) -> None:
    servers = RolloutJournal(tmp_path)
    servers.open()
    servers.save(Rollout(3, Strategy.BLUE_GREEN, "2", Colour.GREEN, [], 1.0))
    with pytest.raises(RolloutError, match="rollout 3 of servers is running"):
        _orders(world, tmp_path).start("1.1.0")
    servers.save(Rollout(3, Strategy.BLUE_GREEN, "2", Colour.GREEN, [], 1.0, "1", state=RolloutState.DONE))
    world.journal.save(world.new())
    with pytest.raises(RolloutError, match="rollout 1 of agents is running"):
        Orders(RolloutOptions(state_dir=tmp_path), world.said.append).start(Strategy.BLUE_GREEN, "3")
    with pytest.raises(RolloutError, match="novacron rollout resume --agents"):
        _orders(world, tmp_path).start("1.1.0")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"restart_hosts": True}, "add --drain-nodes"),
        ({"upgrade_system": ["a b"], "drain_nodes": True}, "upgrade-system: 'a b' is no package"),
        ({"agent_node": ["n99"]}, "agent-node: there is no node n99"),
        ({"waves": "1"}, "waves: '1'"),
    ],
)
def test_what_can_not_be_meant_is_refused_before_anything_is_done(
    world: WaveWorld, tmp_path: Path, options: dict[str, object], why: str
) -> None:
    with pytest.raises(RolloutError, match=why):
        _orders(world, tmp_path, **options).start("1.1.0")
    assert world.journal.last() is None and not world.at.calls


def test_the_nodes_with_the_fewest_vms_are_first(world: WaveWorld, tmp_path: Path) -> None:
    del world.at.guest["vm-n04"]
    assert _orders(world, tmp_path)._names()[0] == "n04"
    assert _orders(world, tmp_path, agent_node=["n05", "n02", "n05"])._names() == ["n05", "n02"]


def test_the_commands_show_a_rollout_of_agents(world: WaveWorld, tmp_path: Path) -> None:
    world.at.off = {"n03"}
    world.run()
    runner = CliRunner()
    shown = runner.invoke(app, ["status", "--agents", "--state-dir", str(tmp_path)])
    assert shown.exit_code == 0 and "5 upgraded, 1 left-out" in shown.output, shown.output
    assert "n03 is left-out: it was off" in shown.output
    listed = runner.invoke(app, ["history", "--agents", "--state-dir", str(tmp_path)])
    assert listed.exit_code == 0 and "1.1.0" in listed.output
    refused = runner.invoke(app, ["pause", "--agents", "--state-dir", str(tmp_path)])
    assert refused.exit_code == 4 and "no rollout of agents is under way" in refused.output
    none = runner.invoke(app, ["status", "--agents", "--state-dir", str(tmp_path / "none")])
    assert none.exit_code != 0 and "no rollout of agents yet" in none.output


def test_reach_must_name_the_node(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["start", "--agents", "--version", "1", "--reach", "ssh root@x", "--state-dir", str(tmp_path)]
    )
    assert done.exit_code == 2 and "write it like ssh root@{node}" in done.output


def test_a_step_follows_each_step(world: WaveWorld) -> None:
    rollout, found = world.new("100%"), []
    while (step := rollout.next_step) is not None:
        rollout.step = step
        found.append(step)
    assert found == ["prepare-1", "install-1", "watch-1"]
    rollout.state = RolloutState.GOING_BACK
    assert rollout.next_step == "return"
