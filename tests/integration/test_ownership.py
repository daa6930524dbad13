"""A VM never runs in two places: the real workers and controllers over the real store, in simulated hosts.

What is real and what is simulated is said in ``tests/simulation/world.py``. Agents are killed, also at any write to
their journals, hosts crash, clocks step, messages are lost, repeated and reordered, operators migrate and abort as
they like. ``NOVACRON_SEED`` repeats a run whose seed was printed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from novacron.model.lease import LEASE_S, MARGIN_S, STEADY_S
from novacron.model.limits import NODE_LOST_AFTER_S
from novacron.model.migration import Side
from novacron.model.unreconciled import EPOCHS_UNSEEN
from novacron.store import leases, vms
from novacron.wire import messages as wire
from tests.chance import fixed_seed, new_seed
from tests.simulation import defects
from tests.simulation.bad_days import BadDay
from tests.simulation.failover import DELAYS_S, SERVER, TICK_S, FailoverHistory
from tests.simulation.link import Links
from tests.simulation.ownership import run_histories, simulation_database
from tests.simulation.seeded import Place, run_histories_from, run_history
from tests.simulation.world import Broken, ServerFiles, World

HISTORIES = int(os.environ.get("NOVACRON_EXAMPLES", "25"))
RARE_DAYS_MAX = 300
HISTORIES_WITH_DEFECT_MAX = 60
BAD_DAYS = 12


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with simulation_database() as opened:
        yield opened


@pytest.mark.timeout(300)
def test_two_owners_never_run(place: Place) -> None:
    assert run_histories(place, HISTORIES, fixed_seed()) > 0, "histories in which nothing moves prove nothing"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_owners_never_run_in_many_more_histories(place: Place) -> None:
    assert run_histories(place, 1000, new_seed()) > 100, "histories in which nothing moves prove nothing"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("defect", defects.OWNERSHIP, ids=lambda defect: defect.__name__)
def test_the_simulation_finds_a_defect_in(
    defect: Callable[[pytest.MonkeyPatch], None], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    defect(monkeypatch)
    with pytest.raises(Broken):
        run_histories(place, HISTORIES_WITH_DEFECT_MAX, defects.OWNERSHIP[defect])


def test_a_node_that_is_cut_off_stops_its_vm_before_another_starts_it(place: Place) -> None:
    assert run_histories_from(place, "failover", 0, 8) > 0


def test_no_vm_runs_twice_whatever_becomes_of_state_folders_and_certificates(place: Place) -> None:
    assert run_histories_from(place, "bad-days", 0, BAD_DAYS) > BAD_DAYS, (
        "histories in which nothing moves prove nothing"
    )


def test_a_seed_gives_the_same_history_each_time(place: Place) -> None:
    """Whatever ran before it."""
    seeds = (5, 8, 12)
    first = [run_history(place, "bad-days", seed).notes for seed in seeds]
    again = [run_history(place, "bad-days", seed).notes for seed in reversed(seeds)]
    assert all(len(notes) > 100 for notes in first)
    assert first == again[::-1]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_vm_runs_twice_on_a_thousand_bad_days(place: Place) -> None:
    """From a new seed each time. Ten thousand take hours: ``python -m tests.simulation bad-days``."""
    run_histories_from(place, "bad-days", new_seed(), 1_000)


async def exchange(world: World, *names: str) -> list[tuple[str, wire.Message]]:
    """Nodes are told how things are, and the server hears them, but for the votes of targets: return those."""
    for name in names:
        await world.say_to(name)
        await world.host_hears(*world.network.for_hosts.pop())
    said, world.network.for_server = world.network.for_server, []
    votes = [item for item in said if isinstance(item[1], wire.Voted) and item[1].side is Side.TARGET]
    for item in said:
        if item not in votes:
            await world.server_hears(*item)
    return votes


async def forget_promise(world: World, how: str) -> None:
    """The source votes for a migration's switch, and then its host loses its power, and its state folder what it has
    promised."""
    source = world.hosts["a"]
    await world.begin()
    await exchange(world, "a")
    shutil.copytree(source.directory, copy := source.directory.with_name("copy"))
    await world.migrate("b")
    await world.control()
    for _ in range(2):
        await exchange(world, "a", "b")
    await world.let_memory_flow(arrives=True)
    votes = await exchange(world)
    assert votes, "the target has voted, too, and that is still under way"
    await source.end_agent()
    source.lose_power()
    if how == "damaged":
        (source.directory / "journal" / f"{world.vm}.json").write_bytes(b"{}")
    else:
        shutil.rmtree(source.directory)
        source.promised.clear()
    if how == "put back":
        copy.rename(source.directory)
    await world.step_server_clock(NODE_LOST_AFTER_S + 1)  # then another host may take its place
    await world.control()
    await source.begin_agent()
    assert not source.refusal
    await Links(world, lambda session, message: None).connect("a")
    await exchange(world, "a")
    for vote in votes:
        await world.server_hears(*vote)
    await exchange(world, "b")
    world.check()


def run_forgotten_promise(place: Place, directory: Path, how: str) -> None:
    async def run() -> None:
        world = World(place[1], directory / "hosts", ("a", "b"))
        try:
            await forget_promise(world, how)
            # A vote binds who has forgotten it; who can't read what it has promised runs nothing before a later epoch.
            assert (await world.come_to_rest()).node == ("a" if how == "damaged" else "b")
        finally:
            await world.end()

    place[0].run(run())


@pytest.mark.parametrize("how", ["wiped", "put back", "damaged"])
def test_a_node_that_has_forgotten_its_promise_runs_nothing_beside_the_target(
    place: Place, tmp_path: Path, how: str
) -> None:
    run_forgotten_promise(place, tmp_path, how)


def test_the_simulation_finds_a_damaged_journal_that_fails_open(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defects.damaged_journal_fails_open(monkeypatch)
    with pytest.raises(Broken, match="in spite of its promise"):
        run_forgotten_promise(place, tmp_path, "damaged")


@pytest.mark.parametrize("defect", defects.BAD_DAYS, ids=lambda defect: defect.__name__)
def test_a_bad_day_finds_a_defect_in(
    defect: Callable[[pytest.MonkeyPatch], None], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    defect(monkeypatch)
    with pytest.raises(Broken):
        run_histories_from(place, "bad-days", defects.BAD_DAYS[defect], HISTORIES_WITH_DEFECT_MAX)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("defect", defects.RARE_DAYS, ids=lambda defect: defect.__name__)
def test_many_bad_days_find_a_defect_in(
    defect: Callable[[pytest.MonkeyPatch], None], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    defect(monkeypatch)
    with pytest.raises(Broken):
        run_histories_from(place, "bad-days", defects.RARE_DAYS[defect], RARE_DAYS_MAX)


async def put_back_after_failover(history: BadDay, files: ServerFiles) -> None:
    """A VM fails over after a backup was made, that is put back, and its former node is heard before all others."""
    world = history.world
    await world.begin(ha=True)
    await history.go_on(30, fails=False)
    await world.back_up()
    await world.hosts["a"].end_agent()
    world.hosts["a"].lose_power()
    await history.go_on(LEASE_S + MARGIN_S + STEADY_S + 5, fails=False)
    (there,) = [name for name, host in world.hosts.items() if host.qemus]
    assert there != "a"
    history.up = {(x, y): SERVER not in (x, y) or "a" in (x, y) for x, y in history.up}
    await history.be_put_back(files)
    await world.hosts["a"].begin_agent()
    await history.go_on(5, fails=False)
    assert "a" in history.links.sessions and there not in history.links.sessions
    assert [name for name, host in world.hosts.items() if host.qemus] == [there]
    async with world.database.connection() as connection:
        vm = await vms.get(connection, world.vm)
        reasons = {row["reason"] for row in await connection.fetch("SELECT reason FROM events")}
    assert (
        vm.node == "a" and vm.status.reason_code == "MayBeElsewhere" and "has not connected since" in vm.status.reason
    )
    assert "DatabaseSuspected" in reasons and "DatabaseTrusted" not in reasons
    await history.rest()
    (owner,) = [name for name, host in world.hosts.items() if host.qemus]
    async with world.database.connection() as connection:
        reasons = {row["reason"] for row in await connection.fetch("SELECT reason FROM events")}
        assert owner == there and "DatabaseTrusted" in reasons


SERVER_FILES = [
    pytest.param(files, marks=() if files is ServerFiles.PUT_BACK else pytest.mark.slow) for files in ServerFiles
]


def run_put_back(place: Place, directory: Path, files: ServerFiles) -> None:
    async def run() -> None:
        history = BadDay(place[1], directory / "hosts", 1)
        try:
            await put_back_after_failover(history, files)
        finally:
            await history.world.end()

    place[0].run(run())


@pytest.mark.parametrize("files", SERVER_FILES)
def test_a_node_that_comes_first_after_an_older_database_was_put_back_begins_nothing(
    place: Place, tmp_path: Path, files: ServerFiles
) -> None:
    run_put_back(place, tmp_path, files)


async def put_back_with_a_damaged_record(history: BadDay) -> None:
    """A VM fails over after a backup was made, that is put back; its node's record of it is damaged meanwhile."""
    world = history.world
    await world.begin(ha=True)
    await history.go_on(30, fails=False)
    await world.back_up()
    await world.hosts["a"].end_agent()
    world.hosts["a"].lose_power()
    await history.go_on(LEASE_S + MARGIN_S + STEADY_S + 5, fails=False)
    (there,) = [name for name, host in world.hosts.items() if host.qemus]
    for name in history.names:  # the others have never heard of it
        host = world.hosts[name]
        await host.end_agent()
        record = host.directory / "journal" / f"{world.vm}.json"
        if name == there:
            record.write_bytes(b"{}")
        elif name != "a":
            record.unlink(missing_ok=True)
    await history.be_put_back(ServerFiles.PUT_BACK)
    for name in history.names:
        await world.hosts[name].begin_agent()
    await history.go_on(10, fails=False)
    assert all(name in history.links.sessions for name in history.names)
    assert [name for name, host in world.hosts.items() if host.qemus] == [there]
    async with world.database.connection() as connection:
        vm = await vms.get(connection, world.vm)
    assert f"node {there} may have it" in str(vm.unreconciled) and vm.epoch == 1
    assert await history.rest() > EPOCHS_UNSEEN


def run_damaged(place: Place, directory: Path) -> None:
    async def run() -> None:
        history = BadDay(place[1], directory / "hosts", 1)
        try:
            await put_back_with_a_damaged_record(history)
        finally:
            await history.world.end()

    place[0].run(run())


def test_a_node_whose_record_is_damaged_was_not_heard_by_an_older_database(place: Place, tmp_path: Path) -> None:
    run_damaged(place, tmp_path)


def test_the_simulation_finds_a_damaged_record_that_counts_as_heard(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defects.damaged_records_count_as_heard(monkeypatch)
    with pytest.raises(Broken, match="the guest goes on at a, runs on"):
        run_damaged(place, tmp_path)


@pytest.mark.parametrize("files", SERVER_FILES)
def test_the_simulation_finds_a_server_that_trusts_every_database(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: ServerFiles
) -> None:
    defects.servers_trust_every_database(monkeypatch)
    with pytest.raises(Broken, match="the guest goes on at a, runs on"):
        run_put_back(place, tmp_path, files)


async def calm_history(place: Place, name: str) -> FailoverHistory:
    history = FailoverHistory(place[1], place[2] / name, 1, fails=False)
    history.world.delay_s = lambda: DELAYS_S[0]  # also messages between nodes are in time
    await history.begin()
    await history.go_on(30, fails=False)
    return history


def test_a_server_that_is_away_stops_no_vm(place: Place) -> None:
    async def run() -> int:
        history = await calm_history(place, "away")
        try:
            (qemu,) = history.world.hosts["a"].qemus.values()
            history.cut_off(SERVER)
            await history.go_on(3 * LEASE_S, fails=False)
            assert qemu.alive, "all nodes say that they hear nothing"
            return await history.rest()
        finally:
            await history.world.end()

    assert place[0].run(run()) == 0


def test_a_node_that_is_cut_off_gives_its_vm_up(place: Place) -> None:
    async def run() -> None:
        history = await calm_history(place, "alone")
        try:
            history.cut_off("a")
            await history.go_on(LEASE_S + MARGIN_S + STEADY_S + 5, fails=False)
            running = [host.name for host in history.world.hosts.values() if host.qemus]
            assert len(running) == 1 and running != ["a"]
        finally:
            await history.world.end()

    place[0].run(run())


def restart_between_voters_and_their_acknowledgement(
    place: Place, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server tells a node of other voters, which it stores. Its agent begins anew before the server has heard of
    that, and then the node and its new voters are cut off from the server."""

    async def run() -> None:
        history = FailoverHistory(place[1], directory / "hosts", 1, fails=False)
        world = history.world
        try:
            await history.begin()
            await history.go_on(30, fails=False)
            for other in ("d", "e"):
                history.up |= {pair: {*pair} in ({"d", "e"}, {"a", other}) for pair in history.up if other in pair}
            world.delay_s = lambda: 0.0
            await history.go_on(6, fails=False)
            heard = history._say_to_server
            monkeypatch.setattr(
                history, "_say_to_server", lambda name, message: None if name == "a" else heard(name, message)
            )
            async with world.database.connection() as connection:
                await connection.execute("UPDATE nodes SET created_at = created_at + interval '1 h' WHERE name < 'd'")
                every = await leases.neighbours(connection)
            await history.links._announcer._announce(every, wire.Revoked(()))
            peers = world.hosts["a"].directory / "peers.json"
            for _ in range(8):
                await history.go_on(TICK_S, fails=False)
                if b'"voters":[{"name":"d"' in peers.read_bytes().replace(b'"type":"peer",', b""):
                    break
            else:
                raise AssertionError("the node was not told")
            await world.hosts["a"].crash_agent()
            cut_off = {"a", "d", "e"}
            history.up = {(x, y): (x in cut_off) == (y in cut_off) for x, y in history.up}
            await history.go_on(LEASE_S + MARGIN_S + STEADY_S + 5, fails=False)
            assert [name for name, host in world.hosts.items() if host.qemus] in (["b"], ["c"])
        finally:
            await world.end()

    place[0].run(run())


def test_an_agent_that_begins_anew_goes_on_by_the_word_of_voters_that_the_server_knows(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.simulation.failover.COUNTS", (5,))
    monkeypatch.setattr(leases, "VOTERS_MAX", 2)
    restart_between_voters_and_their_acknowledgement(place, tmp_path, monkeypatch)


def test_the_simulation_finds_an_agent_that_forgets_by_whose_word_it_went_on(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.simulation.failover.COUNTS", (5,))
    monkeypatch.setattr(leases, "VOTERS_MAX", 2)
    defects.agent_forgets_whom_the_server_knows(monkeypatch)
    with pytest.raises(Broken, match="runs on"):
        restart_between_voters_and_their_acknowledgement(place, tmp_path, monkeypatch)


@pytest.mark.parametrize("defect", defects.LEASES, ids=lambda defect: defect.__name__)
def test_the_simulation_of_leases_finds_a_defect_in(
    defect: Callable[[pytest.MonkeyPatch], None], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    defect(monkeypatch)
    with pytest.raises(Broken):
        run_histories_from(place, "failover", defects.LEASES[defect], HISTORIES_WITH_DEFECT_MAX)
