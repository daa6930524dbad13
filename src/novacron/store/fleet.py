"""All nodes with what is on them, as placement sees them, and VMs that wait for a node."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from novacron.model.errors import NoCapacity
from novacron.model.node import Load
from novacron.model.placement import Fleet, Member, Verdict, Wish
from novacron.model.project import DEFAULT
from novacron.model.vm import VmSpec, VmStatus
from novacron.store import events, networks, nodes
from novacron.store.database import Connection

REASON_LENGTH_MAX = 500

PLACED = """
    SELECT id, node, spec FROM vms WHERE node IS NOT NULL
    UNION ALL SELECT v.id, m.target, v.spec FROM migrations m JOIN vms v ON v.id = m.vm WHERE m.finished_at IS NULL
"""
"""VMs and their nodes; one that is on its way counts at both."""


LOADS = """
    SELECT node, sum(vcpus)::bigint AS vcpus, sum(memory_mib)::bigint AS memory_mib FROM (
        SELECT node, vcpus, memory_mib FROM node_loads
        UNION ALL SELECT m.target, (v.spec ->> 'vcpus')::bigint, (v.spec ->> 'memory_mib')::bigint
        FROM migrations m JOIN vms v ON v.id = m.vm WHERE m.finished_at IS NULL
    ) loads GROUP BY node
"""


async def load(connection: Connection, *, lock: bool = False, images_come: bool = True) -> Fleet:
    """Return all nodes and what is placed on them, as it stays while they are locked."""
    every = await nodes.all(connection, lock=lock)
    rows = await connection.fetch(LOADS)
    grouped = await connection.fetch(
        "SELECT id, node, spec, project FROM vms WHERE grouped AND node IS NOT NULL"
        " UNION ALL SELECT v.id, m.target, v.spec, v.project FROM migrations m JOIN vms v ON v.id = m.vm"
        " WHERE m.finished_at IS NULL AND v.grouped"
    )
    return Fleet(
        every,
        {row["node"]: Load(row["vcpus"], row["memory_mib"]) for row in rows},
        [
            Member(row["id"], row["node"], of_project(msgspec.convert(row["spec"], VmSpec), row["project"]))
            for row in grouped
        ],
        await networks.all(connection),
        images_come=images_come,
    )


def of_project(spec: VmSpec, project: str) -> VmSpec:
    """Return a spec whose groups are told from those that others call the same."""
    if project == DEFAULT:
        return spec
    where = spec.placement
    groups = {
        field: f"{project}/{name}"
        for field in ("affinity", "anti_affinity", "spread")
        if (name := getattr(where, field)) is not None
    }
    return msgspec.structs.replace(spec, placement=msgspec.structs.replace(where, **groups)) if groups else spec


async def check(connection: Connection, name: str, spec: VmSpec, project: str) -> None:
    """Lock a node and raise unless a new VM has room there. Raises NotFound, NoCapacity."""
    await nodes.get(connection, name, lock=True, field="node")
    verdict = (await load(connection)).judge(Wish("", of_project(spec, project)), name)
    if verdict.refusal is not None:
        raise NoCapacity(verdict.refusal, field="node", hint="see: novacron node list")


def summary(verdicts: Sequence[Verdict]) -> str:
    """Say in a sentence or two why no node can take a VM."""
    reasons = [verdict.refusal for verdict in verdicts if verdict.refusal is not None]
    text = "; ".join(reasons)
    if len(text) > REASON_LENGTH_MAX:
        text = f"{len(reasons)} nodes can't take it: {text[: REASON_LENGTH_MAX - 60]}..."
    return text or "there are no nodes"


async def place_waiting(connection: Connection, limit: int) -> None:
    """Give each VM that waits for a node, oldest first, the best one; say in its status why none can take it."""
    waiting = await connection.fetch(
        "SELECT id, name, spec, status, project FROM vms WHERE node IS NULL AND NOT deleting"
        " ORDER BY created_at, id LIMIT $1 FOR UPDATE SKIP LOCKED",
        limit,
    )
    if not waiting:
        return
    fleet = await load(connection, lock=True)
    for row in waiting:
        wish = Wish(row["id"], of_project(msgspec.convert(row["spec"], VmSpec), row["project"]))
        chosen = fleet.place(wish)
        if chosen is not None:
            await connection.execute("UPDATE vms SET node = $2, epoch = 1 WHERE id = $1", row["id"], chosen)
            await events.record(connection, "vm", row["id"], row["name"], "Placed", f"placed on {chosen}")
            continue
        status = VmStatus(reason=summary(fleet.explain(wish)))
        if status != msgspec.convert(row["status"], VmStatus):  # the controller is woken by what it writes here
            await connection.execute("UPDATE vms SET status = $2 WHERE id = $1", row["id"], msgspec.to_builtins(status))
            await events.record(connection, "vm", row["id"], row["name"], "Unplaced", status.reason)
