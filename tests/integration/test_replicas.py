"""Replicas in the database: where they go, whose word counts, and when a VM may go on from one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from novacron.control import replicas as controller
from novacron.control.objects import Objects
from novacron.model.errors import Conflict, IllegalState, InvalidInput, NoCapacity, NovaError, QuotaExceeded
from novacron.model.lease import LEASE_S, MARGIN_S
from novacron.model.replica import Replica, RoundKind
from novacron.model.vm import Vm
from novacron.server import node_statements
from novacron.store import failover, identities, projects, replica_failover, replicas, vms
from novacron.store.database import Connection, Database
from novacron.store.replica_failover import FailoverRequest
from novacron.store.replicas import NewReplica, PointReport, RoundReport
from novacron.wire import messages as wire
from tests.support.project_secrets import PlainSecrets
from tests.support.stored_fleet import add_node, add_vm

DISK = {"name": "disk", "digest": "d", "size_bytes": 1, "kind": "disk", "disk_bytes": 1 << 30}
POINT = PointReport(1, 4.0, 1000, False)


@pytest.fixture
async def fleet(database: Database) -> Database:
    """Node a in site east, with VM web; b and c in site west."""
    async with database.transaction() as connection:
        for name in "abc":
            await add_node(connection, name)
        await connection.execute(
            "UPDATE nodes SET status = jsonb_set(jsonb_set(status, '{inventory,images}',"
            " (status -> 'inventory' -> 'images') || jsonb_build_array($1::jsonb)),"
            " '{inventory,dwcp_endpoint}', to_jsonb(name || ':7445')),"
            " spec = spec || jsonb_build_object('site', CASE name WHEN 'a' THEN 'east' ELSE 'west' END)",
            DISK,
        )
        await add_vm(connection, "web", "a", image="disk")
    return database


async def replicate(
    database: Database, vm: str = "web", to_site: str | None = "west", node: str | None = None
) -> Replica:
    async with database.transaction() as connection:
        return await replicas.create(connection, vm, NewReplica(to_site, node), "me")


async def with_point(database: Database, **reported: Any) -> Replica:
    """Return a replica of web on b, which has a point."""
    replica = await replicate(database, node="b", to_site=None)
    async with database.transaction() as connection:
        await replicas.stands(connection, "b", replica.id, [POINT._replace(**reported)], 5000)
    return await shown(database, replica)


async def shown(database: Database, replica: Replica) -> Replica:
    async with database.connection() as connection:
        return await replicas.get(connection, replica.id)


async def web(database: Database) -> Vm:
    async with database.connection() as connection:
        return await vms.get(connection, "web")


async def silence(database: Database, node: str = "a") -> None:
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE node_leases SET renewed_at = clock_timestamp() - make_interval(secs => $2) WHERE node = $1",
            node, LEASE_S + MARGIN_S + 1.0,
        )  # fmt: skip
        await connection.execute("UPDATE nodes SET status = status || '{\"ready\": false}' WHERE name = $1", node)


async def fail_over(database: Database, **asked: Any) -> Vm:
    async with database.transaction() as connection:
        return await replica_failover.fail_over(connection, "web", FailoverRequest(**asked), "me")


async def told(database: Database, node: str) -> wire.Replicas:
    async with database.transaction(isolation="repeatable_read") as connection:
        basis = node_statements.NodeBasis(None, ())
        said = await node_statements.messages(connection, node, set(), PlainSecrets(), basis)
    [message] = [message for message in said if isinstance(message, wire.Replicas)]
    return message


async def make_available(connection: Connection) -> None:
    await connection.execute("UPDATE vms SET spec = spec || '{\"ha\": true}' WHERE id = 'web'")


async def test_a_site_s_node_with_the_fewest_replicas_gets_the_next_one(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await add_vm(connection, "db", "a", image="disk")
    first, second = await replicate(fleet), await replicate(fleet, "db")
    assert (first.node, second.node, first.site) == ("b", "c", "west")


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ({"to_site": "north"}, "no node in site north"), ({"to_site": None, "node": "a"}, "the VM itself runs there"),
        ({"to_site": "east"}, "a: the VM itself runs there"),
    ],
)  # fmt: skip
async def test_a_replica_that_can_be_nowhere_is_refused_with_the_reason(
    fleet: Database, where: dict[str, Any], why: str
) -> None:
    with pytest.raises(InvalidInput, match=why):
        await replicate(fleet, **where)


async def test_a_node_without_the_image_is_refused_with_what_to_do(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE nodes SET status = jsonb_set(status, '{inventory,images}', '[]')")
    with pytest.raises(InvalidInput, match="novacron image copy disk b"):
        await replicate(fleet)


async def test_vms_that_can_t_be_replicated_as_a_whole_are_refused(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await add_vm(connection, "bare", "a", own_disk=False)
        await add_vm(connection, "secret", "a", image="disk", encryption_key="key-0123456789abcdef")
        await add_vm(connection, "data", "a", image="disk")
        await connection.execute(
            "INSERT INTO volumes (id, name, pool, kind, node, size_mib, phase, vm, vm_name, lun, project)"
            " VALUES ('vol', 'vol', 'local', 'local', 'a', 10, 'ready', 'data', 'data', 0, 'default')"
        )
    for vm, why in (("bare", "no disk of its own"), ("secret", "is encrypted"), ("data", "has volume vol")):
        with pytest.raises(IllegalState, match=why):
            await replicate(fleet, vm)


async def test_both_nodes_are_told_and_the_sender_is_whoever_owns_the_vm(fleet: Database) -> None:
    replica = await replicate(fleet)
    assert [(sent.id, sent.peer, sent.endpoint) for sent in (await told(fleet, "a")).sent] == [
        (replica.id, "b", "b:7445")
    ]
    [kept] = (await told(fleet, "b")).kept
    assert (kept.peer, kept.image, kept.page_key) == ("a", "disk", b"k" * 32)
    assert await told(fleet, "c") == wire.Replicas((), ())
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE vms SET node = 'c' WHERE id = 'web'")
    assert (await told(fleet, "a")).sent == () and len((await told(fleet, "c")).sent) == 1
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE vms SET node = 'b' WHERE id = 'web'")
    assert (await told(fleet, "b")).kept[0].peer == "", "nobody sends to where the VM is"


async def test_points_are_as_old_as_their_node_says_and_only_its_word_counts(fleet: Database) -> None:
    replica = await with_point(fleet)
    [point] = replica.points
    age = datetime.now(UTC) - point.at
    assert timedelta(seconds=4) <= age < timedelta(seconds=60)
    assert replica.late_at is not None and replica.late_at - point.at == timedelta(seconds=90)
    async with fleet.transaction() as connection:
        await replicas.stands(connection, "c", replica.id, [], 0)
        await replicas.round_ended(connection, "c", RoundReport(replica.id, "lies", "", False))
        await replicas.stands(connection, "b", replica.id, [POINT._replace(age_s=900.0)], 5000)
    again = await shown(fleet, replica)
    assert again.points == replica.points and not again.error, "said again, a point gets no older"


async def test_a_round_without_changes_makes_the_newest_point_young_and_an_error_stays_until_a_point_comes(
    fleet: Database,
) -> None:
    replica = await with_point(fleet, age_s=500.0)
    async with fleet.transaction() as connection:
        await replicas.round_ended(connection, "a", RoundReport(replica.id, "no way there", "StepFailed", False))
    failed = await shown(fleet, replica)
    assert (failed.error, failed.reason_code, failed.points) == ("no way there", "StepFailed", replica.points)
    async with fleet.transaction() as connection:
        await replicas.round_ended(connection, "a", RoundReport(replica.id, "", "", True))
    unchanged = await shown(fleet, replica)
    assert unchanged.error == "" and datetime.now(UTC) - unchanged.points[-1].at < timedelta(seconds=60)
    async with fleet.transaction() as connection:
        await replicas.round_ended(connection, "a", RoundReport(replica.id, "no way there", "StepFailed", False))
        await replicas.stands(connection, "b", replica.id, [POINT, POINT._replace(number=2)], 5000)
    assert (await shown(fleet, replica)).error == ""


async def test_a_vm_is_failed_over_only_once_its_node_is_gone_and_then_once(fleet: Database) -> None:
    replica = await with_point(fleet)
    before = await web(fleet)
    with pytest.raises(Conflict, match="was heard"):
        await fail_over(fleet, confirm="a")
    await silence(fleet)
    with pytest.raises(InvalidInput, match="it has not been fenced"):
        await fail_over(fleet)
    with pytest.raises(Conflict, match="has no point 7"):
        await fail_over(fleet, confirm="a", point=7)
    with pytest.raises(Conflict, match="no replica replica-0000000000000000"):
        await fail_over(fleet, confirm="a", replica="replica-0000000000000000")
    moved = await fail_over(fleet, confirm="a")
    assert (moved.node, moved.epoch) == ("b", before.epoch + 1)
    assert moved.clone_of is not None and moved.clone_of.replica is not None
    assert (moved.clone_of.replica.replica, moved.clone_of.replica.point) == (replica.id, 1)
    assert (await fail_over(fleet)).epoch == before.epoch + 2, "it has no disk yet: another point may be chosen"
    with pytest.raises(Conflict, match="is being created from replica"):
        async with fleet.transaction() as connection:
            await replicas.delete(connection, replica.id, "me")
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE vms SET clone_of = NULL WHERE id = 'web'")
    with pytest.raises(Conflict, match="already"):
        await fail_over(fleet, confirm="b")
    async with fleet.connection() as connection:
        said = await connection.fetch("SELECT reason, message FROM events WHERE object = 'web'")
    assert any(row["reason"] == "FailedOver" and "me confirmed that node a is gone" in row["message"] for row in said)


async def test_a_vm_is_not_failed_over_to_a_node_that_can_t_run_it(fleet: Database) -> None:
    await with_point(fleet)
    await silence(fleet)
    await silence(fleet, "b")
    with pytest.raises(NoCapacity, match="node b can't take VM web"):
        await fail_over(fleet, confirm="a")
    assert (await web(fleet)).node == "a"


async def test_a_highly_available_vm_goes_on_from_its_replica_and_never_without_what_it_wrote(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await make_available(connection)
    await silence(fleet)
    async with fleet.transaction() as connection:
        assert await failover.restart_elsewhere(connection, "web", "a", "it is silent") is None
    async with fleet.connection() as connection:
        said = await connection.fetchval("SELECT message FROM events WHERE reason = 'FailoverWaits'")
    assert "no usable replica" in said
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE nodes SET status = status || '{\"ready\": true}' WHERE name = 'a'")
    await with_point(fleet)
    await silence(fleet)
    async with fleet.transaction() as connection:
        assert await failover.restart_elsewhere(connection, "web", "a", "it is silent") == "b"
    moved = await web(fleet)
    assert moved.node == "b" and moved.clone_of is not None and moved.clone_of.replica is not None


async def test_high_availability_needs_a_replica_and_keeps_it(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        with pytest.raises(InvalidInput, match="on its node only"):
            await vms.check_available(connection, "web", (await vms.get(connection, "web")).spec.__class__(
                image="disk", ha=True))  # fmt: skip
    replica = await with_point(fleet)
    async with fleet.transaction() as connection:
        await make_available(connection)
        await vms.check_available(connection, "web", (await vms.get(connection, "web")).spec)
        with pytest.raises(Conflict, match="highly available"):
            await replicas.delete(connection, replica.id, "me")
        await connection.execute("UPDATE vms SET node = 'b' WHERE id = 'web'")
        assert (await replicas.delete(connection, replica.id, "me")).phase == "deleting", "it is of no use there"


async def test_a_replica_is_tried_beside_its_vm_which_stays_as_it_is(fleet: Database) -> None:
    replica = await with_point(fleet)
    before = await web(fleet)
    async with fleet.transaction() as connection:
        tried = await replica_failover.try_out(connection, replica.id, "web-tried", None, "me")
        again = replica_failover.try_out(connection, replica.id, "web-tried", 5, "me")
        with pytest.raises(Conflict, match="has no point 5"):
            await again
    assert (tried.node, tried.spec.connected, tried.spec.nics) == ("b", False, ())
    after = await web(fleet)
    assert (after.node, after.epoch, after.clone_of) == (before.node, before.epoch, None)


async def test_replicas_of_deleted_vms_and_on_removed_nodes_go(fleet: Database) -> None:
    replica = await with_point(fleet)
    async with fleet.transaction() as connection:
        other = await replicas.create(connection, "web", NewReplica(None, "c"), "me")
        await connection.execute("DELETE FROM vms WHERE id = 'web'")
        await connection.execute("DELETE FROM node_leases WHERE node = 'c'")
        await connection.execute("DELETE FROM nodes WHERE name = 'c'")
    await controller.step(fleet, Objects("replicas"))
    with pytest.raises(NovaError, match="no replica"):
        await shown(fleet, other)
    assert (await shown(fleet, replica)).phase == "deleting"
    async with fleet.transaction() as connection:
        await replicas.gone(connection, "c", replica.id)
        assert (await replicas.get(connection, replica.id)).phase == "deleting", (
            "another node's word counts for nothing"
        )
        await replicas.gone(connection, "b", replica.id)
        with pytest.raises(NovaError, match="no replica"):
            await replicas.get(connection, replica.id)


async def test_the_replica_with_the_newest_point_is_taken(fleet: Database) -> None:
    await with_point(fleet, age_s=5000.0)
    newer = await replicate(fleet, to_site=None, node="c")
    async with fleet.transaction() as connection:
        await replicas.stands(connection, "c", newer.id, [POINT], 5000)
        await make_available(connection)
    await silence(fleet)
    async with fleet.transaction() as connection:
        assert await failover.restart_elsewhere(connection, "web", "a", "it is silent") == "c"


async def test_what_a_node_reports_is_put_in_order_and_a_replica_that_gets_no_point_is_late(fleet: Database) -> None:
    replica = await replicate(fleet, to_site=None, node="b")
    assert replica.late_at is not None and replica.late_at - replica.created_at >= timedelta(hours=1)
    async with fleet.transaction() as connection:
        said = [POINT._replace(number=3), POINT, POINT._replace(number=3, age_s=1.0)]
        await replicas.stands(connection, "b", replica.id, said, 5000)
    assert [point.number for point in (await shown(fleet, replica)).points] == [1, 3]
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE vms SET node = 'b' WHERE id = 'web'")
        await replicas.stands(connection, "b", replica.id, [POINT], 5000)
    assert (await shown(fleet, replica)).late_at is None, "it has nothing to follow"


async def test_a_replica_follows_its_vm_s_name_and_project_and_its_node_s_name(fleet: Database) -> None:
    replica = await with_point(fleet)
    async with fleet.transaction() as connection:
        await vms.configure(connection, "web", "shop", {}, None, "me")
        await connection.execute("UPDATE replicas SET node = 'b' WHERE id = $1", replica.id)
        assert ("replicas", "node") in identities.ELSEWHERE
    assert (await shown(fleet, replica)).vm_name == "shop"


async def test_what_the_last_round_was_is_shown_and_a_whole_one_recorded(fleet: Database) -> None:
    replica = await with_point(fleet)
    assert replica.round_kind is None
    for kind, reason in ((RoundKind.WHOLE, "the whole disk was sent: it lacks it"), (RoundKind.COMPARED, "off")):
        async with fleet.transaction() as connection:
            await replicas.round_ended(connection, "a", RoundReport(replica.id, "", "", False, kind, reason))
        after = await shown(fleet, replica)
        assert (after.round_kind, after.round_reason) == (kind, reason)
    async with fleet.connection() as connection:
        said = await connection.fetch("SELECT message FROM events WHERE reason = 'ReplicaSentWhole'")
    assert [row["message"] for row in said] == ["the whole disk was sent: it lacks it"]


async def test_a_failover_has_the_vm_replicated_to_where_it_was(fleet: Database) -> None:
    replica = await with_point(fleet)
    await silence(fleet)
    await fail_over(fleet, confirm="a")
    async with fleet.connection() as connection:
        turned = next(one for one in await replicas.of_vm(connection, "web") if one.node == "a")
    assert (turned.rpo_s, turned.points_kept, turned.site, turned.points) == (30, 3, "east", ())
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE vms SET clone_of = NULL WHERE id = 'web'")
    assert [(sent.id, sent.peer) for sent in (await told(fleet, "b")).sent] == [(turned.id, "a")]
    assert [(kept.id, kept.peer) for kept in (await told(fleet, "a")).kept] == [(turned.id, "b")]
    assert [kept.id for kept in (await told(fleet, "b")).kept] == [replica.id], "what was there stays"


async def test_a_replica_whose_vm_has_come_to_it_is_not_late_and_is_again_when_it_leaves(fleet: Database) -> None:
    replica = await with_point(fleet)
    for node, is_due in (("b", False), ("a", True)):
        async with fleet.transaction() as connection:
            await connection.execute("UPDATE vms SET node = $1 WHERE id = 'web'", node)
        await controller.step(fleet, Objects("replicas"))
        assert ((await shown(fleet, replica)).late_at is not None) == is_due
        async with fleet.connection() as connection:
            assert await replicas.left_over(connection) == []


async def test_replicas_count_in_the_project_s_quota_of_disks(fleet: Database) -> None:
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE vms SET spec = spec || '{\"disk_mib\": 4096}', disk_mib = 4096")
        await connection.execute("SELECT FROM project_usage WHERE project = 'default' FOR UPDATE")
        before = await projects.usage(connection, "default")
        await connection.execute(
            "UPDATE projects SET quota = jsonb_build_object('disk_mib', $1::bigint) WHERE name = 'default'",
            before.disk_mib + 4095,
        )
    with pytest.raises(QuotaExceeded, match="disk_mib"):
        await replicate(fleet)
    async with fleet.transaction() as connection:
        await connection.execute("UPDATE projects SET quota = '{}' WHERE name = 'default'")
    await replicate(fleet)
    async with fleet.connection() as connection:
        assert (await projects.usage(connection, "default")).disk_mib == before.disk_mib + 4096
