"""All nodes with what is on them, as placement sees them, and VMs that wait for a node."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from novacron.model.constraints import Placement
from novacron.model.errors import NoCapacity
from novacron.model.node import Load
from novacron.model.placement import Fleet, Member, Verdict, Wish
from novacron.model.project import DEFAULT
from novacron.model.vm import VmSpec, VmStatus
from novacron.store import events, networks, nodes
from novacron.store.database import Connection
from novacron.store.rows import decode_each
from novacron.telemetry import traces

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


async def load(connection: Connection, *, images_come: bool = True) -> Fleet:
    """Return all nodes and what is placed on them: as it stays, for those whose turn it is (``nodes.take_turn``)."""
    every = await nodes.all(connection)
    rows = await connection.fetch(LOADS)
    grouped = await connection.fetch(
        "SELECT id, node, spec -> 'placement' AS placement, spec -> 'devices' AS devices, project FROM vms"
        " WHERE grouped AND node IS NOT NULL UNION ALL"
        " SELECT v.id, m.target, v.spec -> 'placement', v.spec -> 'devices', v.project"
        " FROM migrations m JOIN vms v ON v.id = m.vm WHERE m.finished_at IS NULL AND v.grouped"
    )
    return Fleet(
        every,
        {row["node"]: Load(row["vcpus"], row["memory_mib"]) for row in rows},
        decode_each("vms", grouped, _member),
        await networks.all(connection),
        images_come=images_come,
    )


def _member(row: Any) -> Member:
    """Return a VM with what of it concerns others: its groups and devices count even if the rest can't be decoded."""
    placement = msgspec.convert(row["placement"] or {}, Placement)
    devices = msgspec.convert(row["devices"] or (), tuple[str, ...])
    return Member(
        row["id"], row["node"], of_project(VmSpec(image="", placement=placement, devices=devices), row["project"])
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
    """Raise unless a new VM has room on a node, until the transaction ends. Raises NotFound, NoCapacity."""
    await nodes.take_turn(connection)
    await nodes.get(connection, name, field="node")
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


async def waiting(connection: Connection, limit: int, *, leave_out: Sequence[str] = ()) -> list[str]:
    """Return up to ``limit`` VMs that wait for a node, oldest first."""
    rows = await connection.fetch(
        "SELECT id FROM vms WHERE node IS NULL AND NOT deleting AND id <> ALL($2) ORDER BY created_at, id LIMIT $1",
        limit,
        leave_out,
    )
    return [row["id"] for row in rows]


async def place_waiting(connection: Connection, ids: Sequence[str]) -> None:
    """Give each of these VMs that waits for a node, oldest first, the best one; store why none can take it.

    Nothing is locked and nothing written until it is known where all of them go.
    """
    began = time.perf_counter()
    await nodes.take_turn(connection)
    rows = await connection.fetch(
        "SELECT id, name, spec, status, project, revision, trace FROM vms"
        " WHERE node IS NULL AND NOT deleting AND id = ANY($1) ORDER BY created_at, id",
        ids,
    )
    fleet, placed, unplaced = await load(connection), list[tuple[Any, str]](), list[tuple[Any, VmStatus]]()
    for row in rows:
        wish = Wish(row["id"], of_project(msgspec.convert(row["spec"], VmSpec), row["project"]))
        chosen = fleet.place(wish)
        if chosen is not None:
            placed.append((row, chosen))
            continue
        status = VmStatus(reason=summary(fleet.explain(wish)))
        if status != msgspec.convert(row["status"], VmStatus):  # the controller is woken by what it writes here
            unplaced.append((row, status))
    happened = await _store_placed(connection, placed, began) + await _store_unplaced(connection, unplaced)
    await events.record_all(connection, happened)


async def _store_placed(connection: Connection, placed: Sequence[tuple[Any, str]], began: float) -> list[events.Event]:
    """Give VMs their nodes; one that has changed meanwhile is looked at again."""
    done = await connection.fetch(
        "UPDATE vms v SET node = p.node, epoch = 1 FROM unnest($1::text[], $2::bigint[], $3::text[])"
        " AS p (id, revision, node) WHERE v.id = p.id AND v.revision = p.revision AND v.node IS NULL RETURNING v.id",
        [row["id"] for row, _ in placed], [row["revision"] for row, _ in placed], [node for _, node in placed],
    )  # fmt: skip
    ids = {row["id"] for row in done}
    placed = [(row, node) for row, node in placed if row["id"] in ids]
    for row, node in placed:
        if row["trace"]:
            took_s = time.perf_counter() - began
            traces.happened("VM is placed", took_s, parent=row["trace"], vm=row["id"], node=node)
    return [
        events.Event("vm", row["id"], row["name"], "Placed", f"placed on {node}", project=row["project"])
        for row, node in placed
    ]


async def _store_unplaced(connection: Connection, unplaced: Sequence[tuple[Any, VmStatus]]) -> list[events.Event]:
    """Store why VMs wait."""
    for row, status in unplaced:
        await connection.execute(
            "UPDATE vms SET status = $2 WHERE id = $1 AND node IS NULL", row["id"], msgspec.to_builtins(status)
        )
    return [
        events.Event("vm", row["id"], row["name"], "Unplaced", status.reason, project=row["project"])
        for row, status in unplaced
    ]
