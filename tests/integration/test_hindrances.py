"""What keeps objects from what was asked, as the server itself finds or stores it: in the status, and in an event."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import pytest

from novacron.control import gateways
from novacron.control.drain import Drains
from novacron.control.objects import Objects
from novacron.model.drain import DrainPhase, DrainPolicy
from novacron.model.image import ImportPhase, ImportSpec, Source
from novacron.model.network import NetworkProblem, NetworkSpec, Protocol
from novacron.model.probe import MoveForeseen
from novacron.model.volume import VolumePhase
from novacron.model.waiting import WaitCode
from novacron.store import drains, garbage, imports, lost_nodes, network_problems, networks, nodes, sites, volumes
from novacron.store import fleet as fleet_store
from novacron.store.database import Connection, Database
from tests.support.stored_fleet import add_node, add_vm

W = WaitCode
NIC = {"network": "lan", "address": "10.9.0.5", "mac": None, "groups": ()}


class Reason(NamedTuple):
    """What is said of an object, in its row and in the newest event with that reason."""

    code: str
    words: str
    event: str


Case = Callable[[Database], Awaitable[Reason]]


async def reason_of(database: Database, table: str, words: str, of: str = "") -> Reason:
    """``words``: the column with them; ``of``: the object of the event, by default the row's id or name."""
    async with database.connection() as connection:
        row = await connection.fetchrow(f"SELECT * FROM {table}")  # noqa: S608
        assert row is not None
        object_ = of or row[next(key for key in ("id", "address", "name") if key in row.keys())]  # noqa: SIM118
        event = await connection.fetchval(
            "SELECT message FROM events WHERE object = $1 AND reason = $2 ORDER BY id DESC LIMIT 1",
            object_, row["reason_code"],
        )  # fmt: skip
    return Reason(row["reason_code"], row[words], event or "")


# what waits for a node


async def add_volume(connection: Connection) -> None:
    await connection.execute(
        "INSERT INTO volumes (id, name, pool, kind, node, size_mib, phase, project)"
        " VALUES ('vol-1', 'data', 'local', 'local', 'a', 8, 'creating', 'default')"
    )


async def add_import(connection: Connection) -> None:
    await imports.create(connection, "default", ImportSpec("debian", Source.UPLOAD, size_bytes=9), "a", "anna")


async def add_export(connection: Connection) -> None:
    await connection.execute(
        "INSERT INTO exports (id, vm, vm_name, node, spec, phase) SELECT 'export-1', id, name, 'a', spec, 'making'"
        " FROM vms"
    )


async def add_snapshot(connection: Connection) -> None:
    await connection.execute(
        "INSERT INTO snapshots (id, vm, vm_name, name, memory, quiesce, vcpus, memory_mib, phase)"
        " VALUES ('snap-1', 'web', 'web', 'before', false, false, 1, 64, 'creating')"
    )


async def add_backup(connection: Connection) -> None:
    await connection.execute("INSERT INTO project_keys (id, project_id, wrapped) VALUES ('key-1', 'default', 'x')")
    await connection.execute("INSERT INTO backup_repositories (id, name, key) VALUES ('repo-1', 'nightly', 'key-1')")
    await connection.execute(
        "INSERT INTO backups (id, vm, vm_name, repository, repository_name, node, spec, phase)"
        " SELECT 'backup-1', id, name, 'repo-1', 'nightly', 'a', spec, 'making' FROM vms"
    )


ADD = {"volume": add_volume, "import": add_import, "export": add_export, "backup": add_backup, "snapshot": add_snapshot}


async def lose_a(connection: Connection) -> None:
    await connection.execute("UPDATE node_leases SET renewed_at = now() - interval '1 min' WHERE node = 'a'")
    await nodes.mark_lost(connection, ["a"], 16.0)


def loses_its_node(kind: str) -> Case:
    async def case(database: Database) -> Reason:
        async with database.transaction() as connection:
            await ADD[kind](connection)
        async with database.transaction() as connection:
            await lose_a(connection)
        said = await reason_of(database, f"{kind}s", "error")
        async with database.connection() as connection:
            told = await connection.fetch("SELECT message FROM events WHERE object = 'a' AND reason = 'Lost'")
        (lost,) = told
        assert f"waiting for it: 1 {kind}" in lost["message"], "one event of the node for all"
        async with database.transaction() as connection:
            await connection.execute("UPDATE node_leases SET renewed_at = now() WHERE node = 'a'")
            await nodes.mark_lost(connection, ["a"], 16.0)
        assert (await reason_of(database, f"{kind}s", "error"))[:2] == ("", ""), "its node is back"
        return said._replace(event=said.words)

    return case


def loses_its_node_for_good(kind: str) -> Case:
    async def case(database: Database) -> Reason:
        async with database.transaction() as connection:
            await ADD[kind](connection)
            await connection.execute("UPDATE vms SET node = 'b'")
            await volumes.node_removed(connection, "a")
            await nodes.forget(connection, "a", "anna", "removed")
        said = await reason_of(database, f"{kind}s", "error")
        return said._replace(event=said.words)  # the node's own event, Removed, is about all

    return case


# VMs: what their nodes say of them is in ``tests/unit/test_waiting.py``


async def reason_of_vm(database: Database, event: str, of: str = "web") -> Reason:
    """``event``: the reason of the event that says it, which is about ``of``."""
    async with database.connection() as connection:
        row = await connection.fetchrow(
            "SELECT status ->> 'reason_code' AS code, status ->> 'reason' AS words FROM vms WHERE id = 'web'"
        )
        said = await connection.fetchval(
            "SELECT message FROM events WHERE object = $1 AND reason = $2 ORDER BY id DESC LIMIT 1", of, event
        )
    assert row is not None
    return Reason(row["code"], row["words"], said or "")


async def has_no_node(database: Database) -> Reason:
    async with database.transaction() as connection:
        await connection.execute("UPDATE nodes SET spec = spec || '{\"cordoned\": true}'")
        await connection.execute("UPDATE vms SET node = NULL, epoch = 0")
        await fleet_store.place_waiting(connection, ["web"])
    return await reason_of_vm(database, W.UNPLACED)


async def starts_on_a_node_that_is_lost(database: Database) -> Reason:
    async with database.transaction() as connection:
        await connection.execute('UPDATE vms SET status = status || \'{"state": "starting"}\'')
        await lose_a(connection)
    said = await reason_of_vm(database, "Lost", "a")
    assert "waiting for it: 1 VM" in said.event
    return said._replace(event=said.words)  # the node's event is about all that wait for it


async def has_its_disk_on_a_node_that_was_removed(database: Database) -> Reason:
    async with database.transaction() as connection:
        await lose_a(connection)
        await connection.execute("UPDATE nodes SET status = jsonb_set(status, '{inventory,images,0,disk_bytes}', '9')")
        await lost_nodes.remove_node(connection, "a", "a", "anna")
    return await reason_of_vm(database, "Lost")


async def is_aborted(database: Database) -> Reason:
    async with database.transaction() as connection:
        await add_import(connection)
        row = await connection.fetchrow("SELECT id FROM imports")
        assert row is not None
        await imports.abort(connection, row["id"], "anna")
    said = await reason_of(database, "imports", "error")
    return said._replace(event=said.words)  # its event is ImportAborted, by who did it


async def is_beyond_its_quota(database: Database) -> Reason:
    async with database.transaction() as connection:
        await connection.execute("UPDATE projects SET quota = $1", {"image_mib": 5})
        await add_import(connection)
        id = await connection.fetchval("SELECT id FROM imports")
        converting = imports.ImportReport(id, ImportPhase.CONVERTING, 9, disk_bytes=10 << 20)
        await imports.report(connection, "a", converting)
    said = await reason_of(database, "imports", "error")
    return said._replace(event=said.words)  # its event is ImportFailed


async def does_not_go_on(database: Database) -> Reason:
    async with database.transaction() as connection:
        await add_import(connection)
        await connection.execute("UPDATE imports SET progressed_at = now() - interval '25 h'")
        await garbage.COLLECTORS["imports that stall"](connection)
    said = await reason_of(database, "imports", "error")
    return said._replace(event=said.words)


# networks


async def add_lan(connection: Connection, gateway: str | None = "a") -> None:
    await networks.create(connection, "default", "lan", NetworkSpec(subnet="10.9.0.0/24"), None, "anna")
    await connection.execute("UPDATE networks SET gateway = $1", gateway)
    await add_vm(connection, "inside", "a", nics=[NIC])
    await connection.execute("INSERT INTO nics (vm, number, network, address, mac) VALUES ('inside', 0, 'lan', $1, '')",
                             NIC["address"])  # fmt: skip
    await connection.execute(
        "INSERT INTO forwards (id, network, protocol, port, vm, vm_name, vm_port)"
        " VALUES ('fwd-1', 'lan', 'tcp', 30022, 'inside', 'inside', 22)"
    )
    await connection.execute(
        "INSERT INTO floating_addresses (address, project, vm, vm_name, network)"
        " VALUES ('192.0.2.7', 'default', 'inside', 'inside', 'lan')"
    )


async def say(database: Database, node: str, *problems: NetworkProblem) -> None:
    async with database.transaction() as connection:
        await network_problems.record(connection, node, problems)


async def has_no_gateway(database: Database) -> Reason:
    async with database.transaction() as connection:
        await add_lan(connection, None)
        await connection.execute("UPDATE nodes SET status = status || '{\"ready\": false}'")
        await connection.execute("UPDATE node_leases SET renewed_at = now() - interval '1 d', hears_until = NULL")
    await gateways.step(database, Objects("gateways"))
    said = await reason_of(database, "networks", "reason")
    async with database.transaction() as connection:
        await network_problems.set_gateway_problem(connection, "lan", "")
    assert (await reason_of(database, "networks", "reason"))[:2] == ("", "")
    return said


def is_said_by_its_gateway(table: str, problem: NetworkProblem, of: str = "") -> Case:
    async def case(database: Database) -> Reason:
        async with database.transaction() as connection:
            await add_lan(connection)
        await say(database, "b", problem)
        assert (await reason_of(database, table, "reason"))[:2] == ("", ""), "only of networks that the node has"
        await say(database, "a", problem)
        said = await reason_of(database, table, "reason", of)
        await say(database, "a")
        assert (await reason_of(database, table, "reason"))[:2] == ("", ""), "it has ended"
        return said

    return case


async def is_outside_of_what_the_site_forwards(database: Database) -> Reason:
    async with database.transaction() as connection:
        await add_lan(connection)
        await connection.execute("INSERT INTO site_settings (site, forward_ports) VALUES ('default', '40000-40010')")
        await sites.check_forwarded(connection, "default")
    await say(database, "a")
    said = await reason_of(database, "forwards", "reason", "inside")
    async with database.transaction() as connection:
        await sites.set_forward_ports(connection, "default", "30000-32767", "anna")
    assert (await reason_of(database, "forwards", "reason"))[:2] == ("", "")
    return said


READ_ONLY = NetworkProblem("lan", W.NETWORK_NOT_READY, "can't set network lan up: Read-only file system")
CLOSED = NetworkProblem("lan", W.INTERFACE_CLOSED, "interface 0 of inside has no traffic")
IN_USE = NetworkProblem("lan", W.PORT_IN_USE, "the gateway's host itself listens", protocol=Protocol.TCP, port=30022)
REFUSED = NetworkProblem(
    "lan", W.RULES_REFUSED, "nftables refuses its rules: syntax", protocol=Protocol.TCP, port=30022
)
UNROUTED = NetworkProblem("lan", W.NOT_ROUTED, "192.0.2.7 is on no subnet", address="192.0.2.7")


# drains


async def estimate_move(vm: str, source: str, target: str) -> MoveForeseen:
    raise AssertionError("policy throttle measures nothing")


async def step(database: Database) -> Any:
    """Let the controller look once, and return the drain."""
    objects = Objects("drain")
    try:
        await Drains(estimate_move).step(database, objects)
        await objects.finish()
    finally:
        await objects.end()
    async with database.connection() as connection:
        return await drains.get(connection, await connection.fetchval("SELECT id FROM drains"))


async def begin(database: Database, time_limit_s: int = 60) -> None:
    """Begin to empty a node from which nothing can go."""
    async with database.transaction() as connection:
        await connection.execute("UPDATE nodes SET spec = spec || '{\"cordoned\": true}'")
        await drains.begin(connection, "a", DrainPolicy.THROTTLE, "anna", time_limit_s)


async def is_blocked(database: Database) -> Reason:
    await begin(database)
    drain = await step(database)
    assert drain.phase is DrainPhase.BLOCKED and drain.finished_at is None
    (stay,) = drain.stays
    assert (stay.vm, stay.reason_code, stay.tries) == ("web", W.UNPLACED, 1), stay
    async with database.connection() as connection:
        told = await connection.fetchval("SELECT message FROM events WHERE object = 'a' AND reason = 'DrainBlocked'")
    return Reason(drain.reason_code, drain.reason, told)


async def is_out_of_time(database: Database) -> Reason:
    await begin(database)
    assert (await step(database)).phase is DrainPhase.BLOCKED
    async with database.transaction() as connection:
        await connection.execute("UPDATE drains SET ends_by = now() - interval '1 s'")
    drain = await step(database)
    assert drain.phase is DrainPhase.FAILED and drain.finished_at is not None
    assert [(stay.vm, stay.reason_code) for stay in drain.stays] == [("web", W.UNPLACED)]
    async with database.connection() as connection:
        assert (await nodes.get(connection, "a")).spec.cordoned
        told = await connection.fetchval("SELECT message FROM events WHERE object = 'a' AND reason = 'DrainFailed'")
    return Reason(drain.reason_code, drain.reason, told)


NOT_CONNECTED = "waits for node a, which is not connected"
CASES: dict[tuple[str, WaitCode], tuple[Case, str]] = {
    **{(kind, W.NODE_LOST): (loses_its_node(kind), NOT_CONNECTED) for kind in ADD},
    **{
        (kind, W.NODE_REMOVED): (loses_its_node_for_good(kind), "was removed")
        for kind in ("volume", "import", "export", "backup")
    },
    ("vm", W.UNPLACED): (has_no_node, "node a is cordoned"),
    ("vm", W.NODE_LOST): (starts_on_a_node_that_is_lost, NOT_CONNECTED),
    ("vm", W.DISK_LOST): (has_its_disk_on_a_node_that_was_removed, "was removed, and its only disk was there"),
    ("import", W.ABORTED): (is_aborted, "aborted"),
    ("import", W.QUOTA_EXCEEDED): (is_beyond_its_quota, "5 MiB of images"),
    ("import", W.TIME_LIMIT): (does_not_go_on, "did not go on"),
    ("network", W.NO_GATEWAY): (has_no_gateway, "no node can be its gateway"),
    ("network", W.NETWORK_NOT_READY): (is_said_by_its_gateway("networks", READ_ONLY), "node a: can't set network"),
    ("network", W.INTERFACE_CLOSED): (is_said_by_its_gateway("networks", CLOSED), "has no traffic"),
    ("forward", W.NETWORK_NOT_READY): (is_said_by_its_gateway("forwards", READ_ONLY, "inside"), "Read-only"),
    ("forward", W.PORT_IN_USE): (is_said_by_its_gateway("forwards", IN_USE, "inside"), "itself listens"),
    ("forward", W.PORT_NOT_ALLOWED): (is_outside_of_what_the_site_forwards, "forwards ports 40000-40010 only"),
    ("forward", W.RULES_REFUSED): (is_said_by_its_gateway("forwards", REFUSED, "inside"), "refuses its rules"),
    ("floating-address", W.NETWORK_NOT_READY): (is_said_by_its_gateway("floating_addresses", READ_ONLY), "Read-only"),
    ("floating-address", W.NOT_ROUTED): (is_said_by_its_gateway("floating_addresses", UNROUTED), "on no subnet"),
    ("drain", W.BLOCKED): (is_blocked, "1 VMs are still on a: web stays:"),
    ("drain", W.TIME_LIMIT): (is_out_of_time, "time limit of 60 s: 1 VMs are still on a: web stays:"),
}  # fmt: skip


@pytest.fixture
async def fleet(database: Database) -> Database:
    """Nodes a and b, and a VM on a."""
    async with database.transaction() as connection:
        for name in "ab":
            await add_node(connection, name)
        await add_vm(connection, "web", "a")
    return database


@pytest.mark.parametrize(("kind", "code"), CASES)
async def test_what_keeps_an_object_is_in_its_status_and_in_an_event(
    fleet: Database, kind: str, code: WaitCode
) -> None:
    case, words = CASES[kind, code]
    said = await case(fleet)
    assert (said.code, words in said.words, words in said.event) == (code, True, True), said


@pytest.mark.parametrize("kind", ["volume", "import", "export", "snapshot"])
async def test_what_an_agent_says_is_stored_and_an_agent_of_before_gets_a_code(fleet: Database, kind: str) -> None:
    async with fleet.transaction() as connection:
        await ADD[kind](connection)
        if kind == "volume":
            for code in ("", "x" * 99, W.NO_SPACE):
                await volumes.report(
                    connection, "a", "vol-1", volumes.VolumeState(VolumePhase.CREATING, 0, "full", code)
                )
        elif kind == "import":
            id = await connection.fetchval("SELECT id FROM imports")
            await imports.report(connection, "a", imports.ImportReport(id, ImportPhase.FAILED, 0, "full", W.NO_SPACE))
    if kind in ("volume", "import"):
        assert (await reason_of(fleet, f"{kind}s", "error"))[:2] == (W.NO_SPACE, "full")


async def test_a_vm_that_blocks_a_drain_is_tried_again_only_after_a_pause(fleet: Database) -> None:
    await begin(fleet)
    first = await step(fleet)
    assert await step(fleet) == first, "nothing is written while it rests"
    async with fleet.transaction() as connection:
        stays = [{**_stored(first.stays[0]), "next_try_at": "2020-01-01T00:00:00Z"}]
        await connection.execute("UPDATE drains SET stays = $1", stays)
    assert (await step(fleet)).stays[0].tries == 2
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE nodes SET spec = spec || '{\"cordoned\": false}' WHERE name = 'b'")
        await connection.execute("UPDATE drains SET stays = '[]'")
    now = await step(fleet)
    assert (now.phase, now.reason, now.stays) == (DrainPhase.DRAINING, "", ()), "it moves"
    async with fleet.connection() as connection:
        assert await connection.fetchval("SELECT array_agg(vm) FROM migrations") == ["web"]
        count = await connection.fetchval(
            "SELECT sum(count) FROM events WHERE object = 'web' AND reason = 'DrainBlocked'"
        )
    assert count == 1, "the reason is the same"


def _stored(stay: Any) -> dict[str, Any]:
    fields: Sequence[str] = stay.__struct_fields__
    return {name: getattr(stay, name) for name in fields if name != "next_try_at"}


async def test_what_is_wrong_with_a_node_s_networks_goes_with_it(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await add_lan(connection)
    await say(fleet, "a", READ_ONLY)
    async with fleet.transaction() as connection:
        await network_problems.node_removed(connection, "a")
    assert (await reason_of(fleet, "networks", "reason"))[:2] == ("", "")


async def test_a_new_gateway_is_not_blamed_for_the_old_one(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await add_lan(connection)
    await say(fleet, "a", READ_ONLY)
    async with fleet.transaction() as connection:
        await networks.move_gateway(connection, "lan", "a", "b")
    assert (await reason_of(fleet, "forwards", "reason"))[:2] == ("", "")
    assert (await reason_of(fleet, "networks", "reason")).code == W.NETWORK_NOT_READY, "it still has VMs there"
