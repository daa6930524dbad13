"""No query that is asked often reads a whole table, with 100,000 VMs on 2,000 nodes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import pytest

from novacron.model import load_hours
from novacron.model.access import Right
from novacron.model.audit import AuditOutcome
from novacron.model.project import Quota
from novacron.model.user import UserKind
from novacron.model.vm import VmAction, VmSpec, VmState, VmStatus
from novacron.server import node_statements
from novacron.store import (
    audit,
    audit_chain,
    audit_sinks,
    events,
    feed,
    fleet,
    forecasts,
    leases,
    load_history,
    migrations,
    new_vms,
    owned,
    projects,
    tenancy_lookup,
    tokens,
    users,
    vms,
)
from novacron.store.audit import Filters
from novacron.store.database import Database, connect
from novacron.store.leases import Beat
from tests.support.project_secrets import PlainSecrets

VMS, NODES = 100_000, 2_000
LARGE = {"vms", "macs", "volumes", "snapshots", "migrations", "events", "changes", "audit", "audit_links", "api_log",
         "vm_load_days", "vm_forecasts", "node_forecasts"}  # fmt: skip
"""Of the tables that have many rows here."""


class Recording:
    """A connection that records its queries."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.asked: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._connection, name)
        if name not in ("fetch", "fetchrow", "fetchval", "execute"):
            return attribute

        async def call(query: str, *arguments: Any, **more: Any) -> Any:
            self.asked.append((query, arguments))
            return await attribute(query, *arguments, **more)

        return call


def scans(plan: Any) -> list[str]:
    """Return the tables that a plan reads from end to end."""
    scanned = [plan["Relation Name"]] if plan["Node Type"] == "Seq Scan" else []
    for inner in plan.get("Plans", ()):
        scanned += scans(inner)
    return scanned


@pytest.fixture(scope="module")
async def large(postgres: Any, template: str) -> Any:
    admin = await asyncpg.connect(postgres.url)
    await admin.execute("CREATE DATABASE test_large TEMPLATE novacron_test")
    url = postgres.url.replace("/postgres?", "/test_large?")
    connection = await connect(url)
    spec, status = msgspec.to_builtins(VmSpec(image="x")), msgspec.to_builtins(VmStatus(state=VmState.RUNNING))
    await connection.execute("SET session_replication_role = replica")
    await connection.execute(
        "INSERT INTO nodes (name, spec, status, revision) SELECT 'n' || n, '{}', '{}', 1 FROM generate_series(1, $1) n",
        NODES,
    )
    await connection.execute("INSERT INTO node_leases (node, renewed_at) SELECT name, now() FROM nodes")
    await connection.execute("INSERT INTO node_loads (node) SELECT name FROM nodes")
    await connection.execute(
        "INSERT INTO vms (id, name, spec, status, node, epoch, revision, project, disk_mib)"
        " SELECT 'vm-' || n, 'web-' || n, $2, $3, 'n' || (n % $4 + 1), 1, 1, 'default', 0"
        " FROM generate_series(1, $1) n",
        VMS, spec, status, NODES,
    )  # fmt: skip
    for table, columns, values in (
        ("events", "kind, object, name, reason, message, actor, revision, project",
         "'vm', 'vm-' || n, 'x', 'x', 'x', 'x', 1, 'default'"),
        ("migrations", "id, vm, vm_name, kind, source, target, epoch, phase, progress, revision, project, finished_at",
         "'m-' || n, 'vm-' || n, 'x', 'live', 'n1', 'n2', 1, 'completed', '{}', 1, 'default', now()"),
        ("audit", "actor, address, method, path, action, outcome, status, request_id, object, project, txid",
         "'u' || n % 1000, 'x', 'x', 'x', 'x', 'done', 200, 'x', 'vm-' || n, 'default', (n % 100)::text::xid8"),
        ("audit_links", "seq, record, previous, hash, salt", "n, n, 'x', 'x', 'x'"),
        ("api_log", "at, request_id, method, route, status, duration_ms, user_name, address",
         "now() - n * interval '1 s', 'x', 'GET', 'r' || n % 100, 200 + 300 * (n % 1000 = 0)::int, 1, 'u' || n % 1000,"
         " 'x'"),
        ("macs", "vm, number, mac, shared", "'vm-' || n, 0, 'x' || n, n % 2 = 0"),
        ("changes", "txid, kind, key", "(n + 100)::text::xid8, 'vm', 'x'"),
        ("snapshots", "id, vm, vm_name, name, memory, quiesce, vcpus, memory_mib, phase, revision, project",
         "'s-' || n, 'vm-' || n, 'x', 'x', false, false, 1, 64, 'ready', 1, 'default'"),
        ("volumes", "id, name, pool, kind, node, size_mib, phase, revision, project, vm, lun",
         "'v-' || n, 'v-' || n, 'local', 'local', 'n' || (n % 2000 + 1), 1, 'ready', 1, 'default', 'vm-' || n, 0"),
        ("vm_load_days", "vm, day, peak_percent, hours, peaks_percent, means_percent",
         "'vm-' || n, '2026-03-01', 1, 1, array_fill(1::smallint, ARRAY[24]), array_fill(1::smallint, ARRAY[24])"),
        ("vm_forecasts", "vm, day, model, peak, last, known_days", "'vm-' || n, '2026-03-01', 'last', 1, 1, 1"),
        ("node_forecasts", "node, hour, model, peak, last, known_hours",
         "'n' || (n % 2000 + 1), '2026-03-01'::timestamptz + n / 2000 * interval '1 h', 'last', 1, 1, 1"),
    ):  # fmt: skip
        overriding = " OVERRIDING SYSTEM VALUE" if table == "changes" else ""
        await connection.execute(
            f"INSERT INTO {table} ({columns}){overriding} SELECT {values} FROM generate_series(1, 50000) n"  # noqa: S608
        )
    await connection.execute("SET session_replication_role = origin")
    await connection.execute("ANALYZE")
    await connection.close()
    opened = await Database.open(url)
    yield opened
    await opened.close()
    await admin.execute("DROP DATABASE test_large WITH (FORCE)")
    await admin.close()


async def test_hot_queries_read_no_whole_table(large: Database) -> None:
    async with large.connection() as real:
        transaction = real.transaction(isolation="repeatable_read")
        await transaction.start()
        connection: Any = Recording(real)
        user = await users.create(connection, "ann", UserKind.PERSON, None, events.SYSTEM)
        token, _ = await tokens.create(connection, user, tokens.NewToken("t", scopes=[Right.READ]), "ann")
        await vms.get(connection, "vm-5")
        making = await projects.making(connection, "default")
        new = new_vms.NewVm("new", VmSpec(image="x", mac="06:00:00:00:00:00"))
        created = await new_vms.create(connection, making, new, "ann")
        await vms.configure(connection, created.id, "newer", {"start_order": 3}, None, "ann")
        await owned.observe(connection, [owned.Report("n6", "vm-5", 1, VmStatus(state=VmState.STOPPED))])
        await vms.act(connection, "vm-6", VmAction.STOP, None, "ann")
        await node_statements.messages(connection, "n7", {"vm-9"}, PlainSecrets(), node_statements.NodeBasis(None, ()))
        await node_statements.VmReadings.read(connection, ["vm-9", "vm-10"], PlainSecrets())
        await migrations.active(connection)
        await leases.renew(connection, [Beat("n1", 0), Beat("n2", 0)], 0.0)
        await leases.over(connection)
        await tenancy_lookup.find(connection, "vm", "web-77", by_name=True)
        # What one project's snapshots take up is summed; all snapshots here are in another one.
        await projects.create(connection, projects.NewProject("small", "", Quota(), False), "ann")
        await projects.usage(connection, "small")
        await feed.read(connection, 120)
        await audit.search(connection, Filters(actor="u7"), None, 50)
        await audit.search(connection, Filters(object="vm-7"), None, 50)
        await audit.search(connection, Filters(), 4000, 50)
        await audit_chain.waits(connection)
        await audit_chain.oldest_unchained_s(connection)
        await audit_chain.head_due(connection, 300, 1000)
        await audit_chain.link(connection)
        await audit_chain.read(connection, await audit_sinks.sent(connection, "syslog"), 50)
        await audit.calls(connection, "u7", None, False, None, 50)
        await audit.calls(connection, None, None, True, None, 50)
        await forecasts.of_vms(connection, ["vm-3", "vm-4"], datetime(2026, 3, 1, tzinfo=UTC))
        await forecasts.of_nodes(connection, ["n3", "n4"], datetime(2026, 3, 1, tzinfo=UTC))
        await load_history.store_vms(connection, [load_hours.VmHour("vm-3", 1_772_323_200, 5, 5)])
        await fleet.place_waiting(connection, [vm.id for vm in await fleet.waiting(connection, 10)])
        assert token.user == user.id and AuditOutcome.DONE
        read: dict[str, list[str]] = {}
        for query, arguments in connection.asked:
            if not query.lstrip().upper().startswith(("SELECT", "UPDATE", "INSERT", "DELETE", "WITH")):
                continue
            plan = await real.fetchval(f"EXPLAIN (FORMAT JSON) {query}", *arguments)
            whole = set(scans(msgspec.json.decode(plan)[0]["Plan"])) & LARGE
            if whole:
                read[" ".join(query.split())[:200]] = sorted(whole)
        statistics = "SELECT seq_scan, idx_scan FROM pg_stat_xact_user_tables WHERE relname = 'macs'"
        by_trigger = await real.fetchrow(statistics)
        await transaction.rollback()
    assert by_trigger is not None
    assert (by_trigger["seq_scan"], by_trigger["idx_scan"] > 0) == (0, True), "MAC addresses are claimed by a trigger"
    assert not read, "\n".join(f"{tables}: {query}" for query, tables in read.items())
