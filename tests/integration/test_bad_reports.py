"""What nodes and guests say that the database does not take: it costs the others nothing, and no link."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, cast

import msgspec
import pytest

from novacron.model.errors import Conflict
from novacron.model.export import Export
from novacron.model.guest_reports import Guest
from novacron.model.vm import VmState, VmStatus
from novacron.server import desired_state, node_statements
from novacron.server.desired_state import DesiredStateSender
from novacron.server.heartbeats import Heartbeats
from novacron.server.observations import Observations
from novacron.server.session import NodeSession
from novacron.store import exports, owned
from novacron.store.database import Connection, Database
from novacron.store.leases import Beat
from novacron.store.rows import Decoded
from novacron.wire import codec
from novacron.wire import messages as wire
from tests.support.project_secrets import PlainSecrets
from tests.support.stored_fleet import add_node, add_vm
from tests.waiting import eventually

RUNNING = VmStatus(state=VmState.RUNNING)


@pytest.fixture
async def fleet(database: Database) -> Database:
    async with database.transaction() as connection:
        for node in "ab":
            await add_node(connection, node)
        for vm, node in (("bad", "a"), ("good", "a"), ("other", "b")):
            await add_vm(connection, vm, node)
        await connection.execute("UPDATE vms SET epoch = 1")
    return database


@contextlib.asynccontextmanager
async def running(work: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    "bad",
    [Beat("b", 0, voters=("x\0",)), Beat("b", 0, steady_s=math.nan), Beat("b", 0, steady_s=1e300),
     Beat("b", 0, seen=(("a\0", True),))],
    ids=["NUL in a voter", "not a number", "too large", "NUL in a peer"],
)  # fmt: skip
async def test_a_heartbeat_that_cannot_be_stored_fails_no_other_nodes(fleet: Database, bad: Beat) -> None:
    heartbeats = Heartbeats(fleet, lambda: 0.0)
    async with running(heartbeats.run()):
        good, refused = await asyncio.gather(
            heartbeats.store(Beat("a", 0)), heartbeats.store(bad), return_exceptions=True
        )
    assert good is None and isinstance(refused, Exception)


async def test_a_node_that_the_database_does_not_know_has_to_begin_anew(fleet: Database) -> None:
    """It was removed, or an older database was put back, and its link has not ended yet."""
    heartbeats = Heartbeats(fleet, lambda: 0.0)
    removed = Beat("removed", 0, seen=(("a", False),))
    async with running(heartbeats.run()):
        good, refused = await asyncio.gather(
            heartbeats.store(Beat("a", 0, seen=(("b", False),))), heartbeats.store(removed), return_exceptions=True
        )
    assert good is None and isinstance(refused, Conflict)


@pytest.mark.parametrize("steady_s", [math.nan, math.inf, -1.0, 1e300])
def test_a_heartbeat_says_a_number_of_seconds(steady_s: float) -> None:
    beat = {"type": "heartbeat", "number": 1, "acknowledged": 0, "steady_s": steady_s, "voters": []}
    with pytest.raises(codec.Undecodable):
        codec.decode_from_agent(msgspec.msgpack.encode(beat))


async def test_a_report_with_text_that_the_database_does_not_take_ends_no_link(fleet: Database) -> None:
    """A guest can choose what it says: its node would connect, say it again, and be cut off again."""
    observations = Observations(fleet)
    status = msgspec.structs.replace(RUNNING, guest=Guest("host", ("a\0b",)))
    session = NodeSession("a", cast(Any, None))
    async with running(observations.run()):
        session.watch(observations.add(owned.Report("a", "bad", 1, status)))
        session.watch(observations.add(owned.Report("a", "good", 1, RUNNING)))
        assert session.observed is not None
        await asyncio.wait_for(session.observed, 20)
        assert session.unstored is None
    async with fleet.connection() as connection:
        states = await connection.fetch("SELECT id, status ->> 'state' AS state FROM vms WHERE node = 'a' ORDER BY id")
    assert {row["id"]: row["state"] for row in states}["good"] == "running"


async def test_a_huge_number_in_one_report_stops_nobodys_desired_state(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        huge = msgspec.structs.replace(RUNNING, reboots=3_000_000_000, halted_at_start=2**40)
        await owned.observe(connection, [owned.Report("a", "bad", 1, huge)])
    async with fleet.transaction(isolation="repeatable_read") as connection:
        readings = await node_statements.VmReadings.read(connection, ["other", "bad"], PlainSecrets())
        assert not readings.unreadable
        assert {vm.id for vm in (await owned.all(connection, node="a")).rows} == {"bad", "good"}


async def test_a_defect_with_one_vm_leaves_those_that_changed_with_it_told(fleet: Database) -> None:
    sent: dict[str, list[str]] = {"a": [], "b": []}

    class Socket:
        def __init__(self, node: str) -> None:
            self._node = node

        async def send(self, raw: bytes) -> None:
            message = codec.decode_from_server(raw)[0]
            sent[self._node] += [statement.vm for statement in cast(Any, message).statements]

    calls: list[str] = []

    def page_keys(project: str, _: datetime | None) -> list[bytes]:
        calls.append(project)
        if len(calls) == 1:
            raise RuntimeError("a defect with one VM")
        return [b"k" * 32]

    sessions = {node: NodeSession(node, cast(Any, Socket(node))) for node in "ab"}
    sender = DesiredStateSender(fleet, sessions, PlainSecrets(page_keys))
    for node, vm in (("a", "bad"), ("a", "good"), ("b", "other")):
        sessions[node].sent_state.basis = node_statements.NodeBasis(None, ())
        sender.hold(sessions[node], vm)
    async with running(sender.run()), running(sender.tell(sessions["a"])), running(sender.tell(sessions["b"])):
        sender._touch("bad", "good", "other")
        await eventually(lambda: len(sent["a"]) + len(sent["b"]) >= 2, "the others are told")


async def test_a_node_is_told_soon_of_what_met_a_defect(fleet: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[type[wire.Message]] = []

    class Socket:
        async def send(self, raw: bytes) -> None:
            kinds.append(type(codec.decode_from_server(raw)[0]))

    read = exports.on_node
    left = [RuntimeError("a defect")]

    async def on_node(connection: Connection, node: str) -> Decoded[Export]:
        if left:
            raise left.pop()
        return await read(connection, node)

    monkeypatch.setattr(exports, "on_node", on_node)
    monkeypatch.setattr(desired_state, "KIND_RETRY_S", 0.05)
    session = NodeSession("a", cast(Any, Socket()))
    sender = DesiredStateSender(fleet, {"a": session}, PlainSecrets())
    sender._cpu_baselines.known = True
    session.look_anew()
    async with running(sender.tell(session)):
        await eventually(lambda: wire.Exports in kinds, "it is told of exports, too")
    assert kinds.index(wire.Desired) < kinds.index(wire.Exports) and kinds.count(wire.Desired) == 1
    assert session.sent_state.look_anew_at is None, "all is well now"
