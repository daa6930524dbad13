"""Two objects for each controller, of which the first fails."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from novacron.audit_chain.heads import SigningKey
from novacron.control.audit_chain import AuditChain
from novacron.control.controller import Controller, Controllers
from novacron.control.objects import Objects
from novacron.model.access import Right
from novacron.model.backup_policy import BackupPolicySpec
from novacron.model.backup_proof import ProofProbe
from novacron.model.drain import DrainPolicy
from novacron.model.forecast import Forecast
from novacron.model.network import NetworkKind, NetworkSpec
from novacron.model.plan import PlanAction, PlanVm
from novacron.model.probe import MoveForeseen, PathMeasured
from novacron.model.rebalance import RebalanceBasis, RebalanceMode, Settings
from novacron.model.scheduled_move import ScheduledMove
from novacron.model.user import UserKind
from novacron.store import (
    backup_policies,
    backup_proofs,
    drains,
    events,
    garbage,
    networks,
    plans,
    rebalancing,
    scheduled_moves,
    tokens,
    users,
)
from novacron.store.backup_policies import NewPolicy
from novacron.store.database import Connection, Database
from novacron.store.fleet_index import FleetIndex
from tests.support.stored_fleet import add_backup, add_node, add_vm, nodes_of_vms

POISON = {"power": "teleport"}
"""Passes every check of the database, and no decoder's."""
ONE_OBJECT = {"forecasts"}
"""Controllers of which the work is one object."""
PATH = PathMeasured("a", "b", 1.0, 1 << 20, 1e8, 1e8, 1.0, 0.1, 0.1, 0, 1)


class Two(NamedTuple):
    """Two objects of a controller, by their keys."""

    bad: str
    good: str


class Fails:
    """Lets what is done with the bad object fail; ``done`` says with which others it was done, to its end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self._patch = monkeypatch

    def at(self, target: str, two: Two) -> Two:
        """``target``: a function of a store, which gets a key, or several, beside the connection."""
        module, _, name = target.rpartition(".")
        of = importlib.import_module(f"novacron.store.{module}")
        self._patch.setattr(of, name, self.around(getattr(of, name), two))
        return two

    def around(self, work: Callable[..., Awaitable[Any]], two: Two) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **more: Any) -> Any:
            keys = set(_keys(args))
            if two.bad in keys:
                raise RuntimeError("a defect with this one")
            result = await work(*args, **more)
            self.done += keys & {two.good}
            return result

        return call


def _keys(args: Iterable[Any]) -> Iterable[str]:
    for arg in args:
        if isinstance(arg, str):
            yield arg
        elif isinstance(arg, list | tuple | set | dict):
            yield from (item for item in arg if isinstance(item, str))


class Nodes:
    """The nodes' part; the first VM of which a move is to be foreseen meets a defect."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def ask(self, node: str, question: Any) -> Any:
        raise AssertionError("no node is asked here")

    async def connected(self) -> list[str]:
        return ["a", "b"]

    async def estimate_move(self, vm: str, source: str, target: str) -> MoveForeseen:
        self.asked.append(vm)
        if vm == self.asked[0]:
            raise RuntimeError("a defect with this one")
        return MoveForeseen(1 << 29, 0, 1.0, PATH, Forecast(True, 30.0, 100.0))


class Sink:
    """Where the audit log is sent."""

    def __init__(self, name: str, fails: Fails) -> None:
        self.name = name
        self._send = fails.around(self._take, Two("bad", "good"))

    async def _take(self, name: str) -> None: ...

    async def send(self, chain: Any) -> None:
        await self._send(self.name)


async def _nodes(connection: Connection) -> None:
    for name in "abc":
        await add_node(connection, name)


async def migration(connection: Connection, fails: Fails) -> Two:
    await _nodes(connection)
    for name in ("bad", "good"):
        await add_vm(connection, name, "a" if name == "bad" else "c")
        await connection.execute(
            "INSERT INTO migrations (id, vm, vm_name, kind, source, target, epoch, phase, progress, created_at)"
            " SELECT 'm-' || id, id, id, 'live', node, 'b', 1, 'pending', '{}', clock_timestamp() FROM vms"
            " WHERE id = $1",
            name,
        )
    await connection.execute("UPDATE nodes SET spec = spec || '{\"migrations_at_once\": 4}'")
    return fails.at("migrations.begin", Two("m-bad", "m-good"))


async def health(connection: Connection, fails: Fails) -> Two:
    await _nodes(connection)
    await connection.execute("UPDATE node_leases SET renewed_at = now() - interval '1 h' WHERE node < 'c'")
    return fails.at("nodes.mark_lost", Two("a", "b"))


async def gateways(connection: Connection, fails: Fails) -> Two:
    await _nodes(connection)
    await connection.execute("UPDATE nodes SET status = jsonb_set(status, '{inventory,networks}', 'true')")
    for number, name in enumerate(("lan-a", "lan-b")):
        spec = NetworkSpec(NetworkKind.OVERLAY, subnet=f"10.9.{number}.0/24")
        await networks.create(connection, "default", name, spec, None, "ann")
        await add_vm(connection, f"in-{name}", "a")
        await connection.execute(
            "INSERT INTO nics (vm, number, network, address, mac) VALUES ($1, 0, $2, $3, '')",
            f"in-{name}", name, f"10.9.{number}.5",
        )  # fmt: skip
    await connection.execute("UPDATE networks SET gateway = NULL")
    return fails.at("networks.move_gateway", Two("lan-a", "lan-b"))


async def collected(connection: Connection, fails: Fails) -> Two:
    two = Two("changes", "tickets")
    for kind, collect in list(garbage.COLLECTORS.items()):

        async def call(connection: Connection, kind: str = kind, collect: Any = collect) -> None:
            await fails.around(lambda _: collect(connection), two)(kind)

        fails._patch.setitem(garbage.COLLECTORS, kind, call)
    return two


async def certificates(connection: Connection, fails: Fails) -> Two:
    await _nodes(connection)
    await connection.execute(
        "UPDATE nodes SET status = status || jsonb_build_object('certificate_ends_at_s',"
        " extract(epoch FROM now())::float8 + 60) WHERE name < 'c'"
    )
    return fails.at("certificates.warn", Two("a", "b"))


async def conditions(connection: Connection, fails: Fails) -> Two:
    await _nodes(connection)
    return fails.at("conditions.refresh", Two("a", "b"))


async def replicas(connection: Connection, fails: Fails) -> Two:
    two = Two(f"replica-{1:016}", f"replica-{2:016}")
    for id in two:
        await connection.execute(
            "INSERT INTO replicas (id, vm, vm_name, node, site, phase, rpo_s, points_kept, project)"
            " VALUES ($1, $1, 'web', 'gone', 'default', 'following', 60, 2, 'default')",
            id,
        )
    return fails.at("replicas.clear", two)


async def recovery_plans(connection: Connection, fails: Fails) -> Two:
    await _nodes(connection)
    ids = []
    for name in ("db", "web"):
        await add_vm(connection, name, "a")
        plan = await plans.create(connection, "default", name, (PlanVm(name),), "me")
        await plans.begin(connection, plan.id, PlanAction.FAILOVER, "me")
        ids.append(plan.id)
    return fails.at("plans.follow", Two(*sorted(ids)))


async def placement(connection: Connection, fails: Fails) -> Two:
    await _nodes(connection)
    await add_vm(connection, "bad", **POISON)
    await add_vm(connection, "good")
    return Two("bad", "good")


async def failover(connection: Connection, fails: Fails) -> Two:
    await _nodes(connection)
    await add_vm(connection, "bad", "a", ha=True, ha_priority=100, **POISON)
    await add_vm(connection, "good", "a", ha=True, ha_priority=1)
    await connection.execute("UPDATE node_leases SET renewed_at = now() - interval '1 h' WHERE node = 'a'")
    return Two("bad", "good")


async def drain(connection: Connection, fails: Fails) -> Two:
    await _nodes(connection)
    ids = []
    for vm, node in (("bad", "a"), ("good", "b")):
        await add_vm(connection, vm, node)
        ids.append((await drains.begin(connection, node, DrainPolicy.THROTTLE, "test")).id)
    return fails.at("drains.get", Two(*ids))


async def policies(connection: Connection, fails: Fails) -> Two:
    await add_backup(connection)
    repository = await connection.fetchval("SELECT id FROM backup_repositories")
    ids = []
    for name in ("daily", "weekly"):
        spec = BackupPolicySpec(repository=repository, schedule=name)
        ids.append((await backup_policies.create(connection, NewPolicy("default", name, spec), "test")).id)
    return fails.at("backup_policies.get", Two(*sorted(ids)))


async def proofs(connection: Connection, fails: Fails) -> Two:
    first = await add_backup(connection)
    await connection.execute(
        "INSERT INTO backups (id, vm, vm_name, repository, repository_name, node, spec, phase, result, project)"
        " SELECT $1, vm, vm_name, repository, repository_name, 'b', spec, phase, result, project FROM backups",
        f"backup-{'f' * 16}",
    )
    for id in (first, f"backup-{'f' * 16}"):
        await backup_proofs.ask(connection, id, ProofProbe(), "me")
    return fails.at("backups.get", Two(first, f"backup-{'f' * 16}"))


async def sessions(connection: Connection, fails: Fails) -> Two:
    user = await users.create(connection, "ann", UserKind.PERSON, None, events.SYSTEM)
    ids = []
    for name in ("old", "older"):
        token, _ = await tokens.create(connection, user, tokens.NewToken(name, scopes=[Right.READ]), "ann")
        ids.append(token.id)
    await connection.execute("UPDATE tokens SET kind = 'session', created_at = now() - interval '9 years'")
    rows = await connection.fetch("SELECT id FROM tokens")
    assert {row["id"] for row in rows} >= set(ids)
    return fails.at("tokens.end", Two(*ids))


async def audit(connection: Connection, fails: Fails) -> Two:
    await events.record(connection, events.NewEvent("node", "a", "a", "Created", "", "ann"))
    await connection.execute(
        "INSERT INTO audit (actor, address, method, path, action, outcome, status, request_id, txid)"
        " VALUES ('ann', '', 'GET', '/', 'x', 'done', 200, 'x', pg_current_xact_id())"
    )
    return Two("bad", "good")


async def rebalance(connection: Connection, fails: Fails) -> Two:
    await _nodes(connection)
    for number in range(4):
        await add_vm(connection, f"vm-{number}", at="a", memory_mib=512, vcpus=2)
    await connection.execute("INSERT INTO vm_loads (vm, cpus, measured_at) SELECT id, 0.9, clock_timestamp() FROM vms")
    settings = Settings(RebalanceMode.AUTO, basis=RebalanceBasis.AVERAGE, rounds=1, imbalance_min=0.01)
    await rebalancing.configure(connection, settings, "test")
    return Two("", "")


async def scheduled(connection: Connection, fails: Fails) -> Two:
    await _nodes(connection)
    now = datetime.now(UTC)
    move = ScheduledMove(not_before=now, deadline=now + timedelta(hours=1), begins_at=now, why="", actor="ann")
    for name in ("bad", "good"):
        await add_vm(connection, name, "a")
        await scheduled_moves.schedule(connection, name, move, None)
    return fails.at("scheduled_moves.begin", Two("bad", "good"))


CASES: dict[str, Callable[[Connection, Fails], Awaitable[Two]]] = {
    "migration": migration, "health": health, "gateways": gateways, "garbage": collected,
    "certificates": certificates, "conditions": conditions, "replicas": replicas, "plans": recovery_plans,
    "placement": placement, "failover": failover, "drain": drain, "backups": policies, "backup-proofs": proofs,
    "sessions": sessions, "audit-chain": audit, "rebalance": rebalance,
    "scheduled-moves": scheduled,
}  # fmt: skip


def all_controllers(database: Database, fails: Fails, nodes: Nodes) -> dict[str, tuple[Controller, Objects]]:
    sinks = [Sink(name, fails) for name in ("bad", "good")]
    chain = AuditChain(SigningKey(Ed25519PrivateKey.generate()), "host-a", 1e9, sinks)
    controllers = Controllers(database, FleetIndex(), nodes, chain)
    return {item.name: (item, controllers._objects[item.name]) for item in controllers._all}


async def was_done(database: Database, name: str, two: Two, fails: Fails, nodes: Nodes) -> bool:
    """Say whether the good object is as its controller wants it."""
    async with database.connection() as connection:
        moving = [row["vm"] for row in await connection.fetch("SELECT vm FROM migrations ORDER BY vm")]
    match name:
        case "placement":
            return (await nodes_of_vms(database))["good"] is not None
        case "failover":
            return (await nodes_of_vms(database))["good"] != "a"
        case "drain":
            return moving == ["good"]
        case "rebalance":
            return len(nodes.asked) > 1 and moving != [] and nodes.asked[0] not in moving
        case _:
            return set(fails.done) == {two.good}
