"""Rebalancing: what VMs use, how it is set up, and what was decided last."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any

import asyncpg
import msgspec

from novacron.model.errors import NoCapacity
from novacron.model.overload import HourlyUse, VmAhead
from novacron.model.placement import Wish
from novacron.model.rebalance import Decision, NodeUse, RebalanceMode, Settings, VmLoad, memory_refusal, smoothed
from novacron.model.vm import VmSpec
from novacron.store import events, fleet, load_profiles, nodes
from novacron.store.database import Connection
from novacron.store.rows import decode_each, report_bad_row

MEASURED_S_MAX = 600.0
"""A VM that was not measured for so long is taken to use what was measured last, and is not moved."""
RATE_BYTES_PER_S = 12.5e6
"""At which a move is taken to go, where none has been made yet."""


class Rebalancing(msgspec.Struct, frozen=True):
    """As stored and as the API shows it."""

    settings: Settings
    rounds: int
    decision: Decision | None
    decided_at: datetime | None


async def get(connection: Connection) -> Rebalancing:
    row = await connection.fetchrow("SELECT settings, rounds, decision, decided_at FROM rebalancing")
    stored = dict(row or {})
    return msgspec.convert(stored | {"settings": read(stored["settings"])}, Rebalancing)


def read(stored: Mapping[str, object]) -> Settings:
    """Return stored settings. What a newer server has stored and this one does not know, or not so, is left out: during
    an update both read them."""
    known: dict[str, Any] = {}
    for field in Settings.__struct_fields__:
        if field in stored:
            try:
                known[field] = getattr(msgspec.convert({field: stored[field]}, Settings), field)
            except msgspec.ValidationError as error:
                report_bad_row("rebalancing", field, error)
    return Settings(**known)


def stored_form(settings: Settings) -> dict[str, Any]:
    """Return settings as they are stored: only what differs from the defaults, so that an older server, which takes no
    field that it does not know, can read them where they say nothing new."""
    usual = msgspec.to_builtins(Settings())
    return {field: value for field, value in msgspec.to_builtins(settings).items() if value != usual[field]}


async def configure(connection: Connection, settings: Settings, actor: str) -> Rebalancing:
    """Set rebalancing up anew."""
    await connection.execute("UPDATE rebalancing SET settings = $1, rounds = 0", stored_form(settings))
    said = ", ".join(f"{field} {value}" for field, value in msgspec.to_builtins(settings).items())
    await events.record(
        connection, events.NewEvent("rebalancing", "rebalancing", "rebalancing", "Configured", said, actor)
    )
    return await get(connection)


async def decided(connection: Connection, decision: Decision) -> None:
    """Store a decision; moves are recorded, each with its reason."""
    await connection.execute(
        "UPDATE rebalancing SET rounds = $1, decision = $2, decided_at = clock_timestamp()",
        decision.rounds,
        msgspec.to_builtins(decision),
    )


async def record(connection: Connection, mode: RebalanceMode, decision: Decision) -> None:
    """Record a decision, whether it was carried out or only advised."""
    for move in decision.moves:
        reason = "Rebalanced" if mode is RebalanceMode.AUTO else "RebalanceAdvised"
        message = f"from {move.source} to {move.target}: {decision.why}; {move.why}"
        await events.record(connection, events.NewEvent("vm", move.vm, move.vm_name, reason, message))


async def measured(connection: Connection, node: str, used: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Store how many processors VMs of a node have used since they were measured last. Return that of the VMs which
    are the node's: of others it has nothing to say."""
    rows = await connection.fetch(
        "SELECT v.id, l.cpus, extract(epoch FROM clock_timestamp() - l.measured_at)::float AS passed_s"
        " FROM vms v LEFT JOIN vm_loads l ON l.vm = v.id WHERE v.node = $1 AND v.id = ANY($2)",
        node,
        [vm for vm, _ in used],
    )
    before = {row["id"]: (row["cpus"], row["passed_s"] or 0.0) for row in rows}
    now = [(vm, smoothed(before[vm][0], cpus, before[vm][1])) for vm, cpus in used if vm in before]
    await connection.executemany(
        "INSERT INTO vm_loads (vm, cpus, measured_at) VALUES ($1, $2, clock_timestamp())"
        " ON CONFLICT (vm) DO UPDATE SET cpus = $2, measured_at = clock_timestamp()",
        now,
    )
    return [(vm, cpus) for vm, cpus in used if vm in before]


async def uses(connection: Connection) -> dict[str, NodeUse]:
    """Return what the VMs of each node use together."""
    rows = await connection.fetch(
        "SELECT n.node, n.memory_mib - coalesce(o.huge_2m_mib + o.huge_1g_mib, 0) AS memory_mib,"
        " coalesce(c.cpus, 0)::float AS cpus FROM node_loads n LEFT JOIN"
        " (SELECT v.node, sum(l.cpus) AS cpus FROM vm_loads l JOIN vms v ON v.id = l.vm GROUP BY v.node) c"
        f" ON c.node = n.node LEFT JOIN ({nodes.OWN_OF_NODES}) o ON o.node = n.node"
    )
    return {row["node"]: NodeUse(row["cpus"], row["memory_mib"]) for row in rows}


async def loads(connection: Connection, on: Sequence[str]) -> list[VmLoad]:
    """Return what is known of every VM on these nodes. One that can't be decoded is left out: it is not moved.

    A move of rebalancing's that failed or was aborted counts as one, too: the next would likely end like it."""
    rows = await connection.fetch(
        """
        SELECT v.id, v.name, v.project, v.spec, v.node, coalesce(l.cpus, 0) AS cpus,
               v.status ->> 'state' = 'running' AND v.migration IS NULL AND NOT v.deleting AND v.clone_of IS NULL
               AND coalesce(l.measured_at > now() - make_interval(secs => $1), false)
               AND NOT EXISTS (SELECT FROM volumes o WHERE o.vm = v.id AND o.kind = 'local')
               AND NOT EXISTS (SELECT FROM snapshots s WHERE s.vm = v.id) AS movable,
               extract(epoch FROM clock_timestamp() - m.finished_at)::float AS moved_s, m.elapsed_s
        FROM vms v LEFT JOIN vm_loads l ON l.vm = v.id LEFT JOIN LATERAL (
            SELECT max(finished_at) FILTER (WHERE phase = 'completed' OR cause = 'rebalance') AS finished_at,
                (array_agg(progress -> 'elapsed_s' ORDER BY finished_at DESC) FILTER (WHERE phase = 'completed'))[1]
                AS elapsed_s
            FROM migrations WHERE vm = v.id AND finished_at IS NOT NULL
        ) m ON true
        WHERE v.node = ANY($2)
        """,
        MEASURED_S_MAX,
        on,
    )
    return decode_each("vms", rows, _load)


def _load(row: asyncpg.Record) -> VmLoad:
    spec = fleet.of_project(msgspec.convert(row["spec"], VmSpec), row["project"])
    elapsed_s = row["elapsed_s"]
    return VmLoad(
        Wish(row["id"], spec, row["node"], images_come=False), row["name"], row["cpus"],
        math.inf if row["moved_s"] is None else row["moved_s"], row["movable"],
        float(elapsed_s) if elapsed_s else spec.memory_mib * 2**20 / RATE_BYTES_PER_S,
    )  # fmt: skip


async def vms_ahead(connection: Connection, on: Sequence[str], today: date) -> list[VmAhead]:
    """Return every VM on these nodes with what it usually uses."""
    vms = await loads(connection, on)
    usual = await load_profiles.of_vms(connection, [vm.wish.id for vm in vms], today)
    return [
        VmAhead(
            vm,
            HourlyUse(vm.cpus, *usual[vm.wish.id]).capped(vm.wish.spec.vcpus)
            if vm.wish.id in usual
            else HourlyUse.unusual(vm.cpus),
        )
        for vm in vms
    ]


async def check_memory(connection: Connection, node: str, vm: str) -> None:
    """Raise NoCapacity if the memory of a node does not hold a VM that was just sent there, with all that are there or
    on their way. Whoever asks has taken the turn of placement (``nodes.take_turn``)."""
    more_mib: int | None = await connection.fetchval(f"SELECT {nodes.SHARED_MIB} FROM vms WHERE id = $1", vm)
    if more_mib is None:
        return
    given = await nodes.load(connection, node)
    why = memory_refusal(await nodes.get(connection, node), given.memory_mib - more_mib, more_mib)
    if why is not None:
        raise NoCapacity(why, field="target", hint="see: novacron node list")


async def under_way(connection: Connection) -> int:
    """Return how many moves of rebalancing's have not ended."""
    count: int = await connection.fetchval(
        "SELECT count(*) FROM migrations WHERE finished_at IS NULL AND cause = 'rebalance'"
    )
    return count
