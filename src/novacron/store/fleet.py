"""All nodes with what is on them, as placement sees them, and VMs that wait for a node."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import asyncpg
import msgspec

from novacron.model import limits
from novacron.model.constraints import Placement
from novacron.model.errors import NoCapacity
from novacron.model.fit import cannot_run
from novacron.model.groups import groups_of_project, is_grouped
from novacron.model.node import Load, Node
from novacron.model.ownership import Claim
from novacron.model.placement import Fleet, Member, Wish
from novacron.model.vm import VmSpec, VmState, VmStatus, bound_to
from novacron.model.volume import Volume
from novacron.model.waiting import WaitCode
from novacron.store import events, networks, nodes, unreconciled, volumes
from novacron.store.database import Connection
from novacron.store.fleet_index import FleetIndex, Size
from novacron.store.rows import decode_each
from novacron.telemetry import traces
from novacron.telemetry.values import counter

REASON_LENGTH_MAX = 500

PLACED = """
    SELECT id, node, spec FROM vms WHERE node IS NOT NULL
    UNION ALL SELECT v.id, m.target, v.spec FROM migrations m JOIN vms v ON v.id = m.vm WHERE m.finished_at IS NULL
"""
"""VMs and their nodes; one that is on its way counts at both."""


def _of_record(field: str, most: int) -> str:
    """Return what a node's record of a VM says of its size, as SQL: a node may say anything."""
    value = f"u.description #> '{{spec,{field}}}'"
    bounded = f"greatest(0, least(({value})::numeric, {most}))::bigint"
    return f"CASE jsonb_typeof({value}) WHEN 'number' THEN {bounded} ELSE 0 END"


def _is(field: str, *values: str) -> str:
    """Return whether a node's record of a VM has one of these values in a field, as SQL that is never NULL."""
    listed = ", ".join(f"'{value}'" for value in values)
    return f"coalesce(u.description #>> '{{spec,{field}}}' IN ({listed}), false)"


_RECORDED_VCPUS, _RECORDED_MIB = _of_record("vcpus", limits.VCPUS_MAX), _of_record("memory_mib", limits.MEMORY_MIB_MAX)
LOADS = f"""
    SELECT node, {", ".join(f"sum({field})::bigint AS {field}" for field in nodes.SUMS)} FROM (
        SELECT node, vcpus, memory_mib, 0 AS dedicated_vcpus, 0 AS huge_2m_mib, 0 AS huge_1g_mib FROM node_loads
        UNION ALL SELECT node, 0, {nodes.SUMS["memory_mib"]} - (spec ->> 'memory_mib')::bigint,
        {nodes.SUMS["dedicated_vcpus"]}, {nodes.SUMS["huge_2m_mib"]}, {nodes.SUMS["huge_1g_mib"]}
        FROM vms WHERE node IS NOT NULL AND {nodes.OWN_PARTS}
        UNION ALL SELECT m.target, {", ".join(nodes.SUMS.values())}
        FROM migrations m JOIN vms v ON v.id = m.vm WHERE m.finished_at IS NULL
        UNION ALL SELECT u.node, {_RECORDED_VCPUS},
        CASE WHEN {_is("hugepages", "2M", "1G")} THEN 0 ELSE {_RECORDED_MIB} END,
        CASE WHEN {_is("cpu_policy", "dedicated")} THEN {_RECORDED_VCPUS} ELSE 0 END,
        CASE WHEN {_is("hugepages", "2M")} THEN {_RECORDED_MIB} ELSE 0 END,
        CASE WHEN {_is("hugepages", "1G")} THEN {_RECORDED_MIB} ELSE 0 END
        FROM unreconciled_vms u WHERE u.proven AND u.claim IN ('{Claim.OWNER}', '{Claim.INCOMING}')
        AND NOT EXISTS (SELECT FROM vms v WHERE v.id = u.vm AND v.node = u.node)
    ) loads GROUP BY node
"""
"""The fields of each node's ``Load``. ``node_loads`` counts all memory alike. VMs that a node runs, and an older
database does not have, or has elsewhere, count there, too."""


ELSEWHERE = f"""
    (SELECT format('{unreconciled.UNHEARD}', min(l.node)) FROM database_restored r
     JOIN node_leases l ON {unreconciled.NOT_HEARD} WHERE vms.created_at < r.found_at HAVING count(*) > 0)
"""
"""Of a VM that waits for a node: why a node may have it already, of which an older database knows nothing."""


GROUPED = """
    SELECT id, node, spec -> 'placement' AS placement, spec -> 'devices' AS devices, project FROM vms
    WHERE grouped AND node IS NOT NULL
    UNION ALL SELECT v.id, m.target, v.spec -> 'placement', v.spec -> 'devices', v.project
    FROM migrations m JOIN vms v ON v.id = m.vm WHERE m.finished_at IS NULL AND v.grouped
"""
"""VMs that concern others: members of groups, and those that have devices of their nodes."""


async def load(connection: Connection) -> Fleet:
    """Return all nodes and what is placed on them: as it stays, for those whose turn it is (``nodes.take_turn``).

    This reads and decodes every node: see ``FleetIndex`` for what is done often.
    """
    return Fleet(
        await nodes.all(connection),
        _loads(await connection.fetch(LOADS)),
        decode_each("vms", await connection.fetch(GROUPED), _member),
        await networks.all(connection),
    )


def _loads(rows: Iterable[asyncpg.Record]) -> dict[str, Load]:
    return {row["node"]: Load(*(row[field] for field in nodes.SUMS)) for row in rows}


async def load_some(
    connection: Connection, names: Collection[str], wishes: Sequence[Wish], held: Iterable[str] = ()
) -> Fleet:
    """Return some nodes with all that decides whether these VMs may be on them, as ``load`` does. ``held``: images that
    other nodes hold."""
    members = await _members(connection, names, wishes)
    every = set(names) | {member.node for member in members}
    loads = await connection.fetch(f"SELECT * FROM ({LOADS}) loads WHERE node = ANY($1)", list(names))
    network_names = {nic.network for wish in wishes for nic in wish.spec.nics}
    return Fleet(
        await nodes.some(connection, every),
        _loads(loads),
        members,
        await networks.all(connection) if network_names else (),
        held,
    )


async def _members(connection: Connection, names: Collection[str], wishes: Sequence[Wish]) -> list[Member]:
    """Return the VMs that are in a group with one of these, and those that have devices of these nodes."""
    grouped = [wish.spec for wish in wishes if is_grouped(wish.spec)]
    if not grouped:
        return []
    places = [spec.placement for spec in grouped]
    groups = [{group for group in named if group is not None} for named in (
        [where.affinity for where in places], [where.anti_affinity for where in places],
    )]  # fmt: skip
    rows = await connection.fetch(
        f"SELECT * FROM ({GROUPED}) g WHERE placement ->> 'affinity' = ANY($1)"
        " OR placement ->> 'anti_affinity' = ANY($2) OR (devices <> '[]' AND node = ANY($3))",
        *[[group.rsplit("/", 1)[-1] for group in named] for named in groups], list(names),
    )  # fmt: skip
    return decode_each("vms", rows, _member)


def _member(row: asyncpg.Record) -> Member:
    """Return a VM with what of it concerns others: its groups and devices count even if the rest can't be decoded."""
    placement = msgspec.convert(row["placement"] or {}, Placement)
    devices = msgspec.convert(row["devices"] or (), tuple[str, ...])
    return Member(row["id"], row["node"], Size(0, 0, groups_of_project(placement, row["project"]), devices))


def of_project(spec: VmSpec, project: str) -> VmSpec:
    """Return a spec whose groups can't collide with groups of the same name in other projects."""
    where = groups_of_project(spec.placement, project)
    return spec if where is spec.placement else msgspec.structs.replace(spec, placement=where)


async def check(connection: Connection, name: str, spec: VmSpec, project: str) -> None:
    """Raise unless a new VM has room on a node, until the transaction ends. Raises NotFound, NoCapacity."""
    await nodes.take_turn(connection)
    await nodes.get(connection, name, field="node")
    wish = Wish("", of_project(spec, project))
    held = await nodes.others_hold_image(connection, name, spec.image)
    verdict = (await load_some(connection, [name], [wish], [spec.image] if held else [])).judge(wish, name)
    if verdict.refusal is not None:
        raise NoCapacity(verdict.refusal, field="node", hint="see: novacron node list")


class Choice(NamedTuple):
    """Where a VM goes, None: nowhere; and the fleet that says so."""

    node: str | None
    fleet: Fleet


async def choose(connection: Connection, wish: Wish, index: FleetIndex | None) -> Choice:
    """Choose the best node for a VM, for those whose turn it is: from the index, and true in this transaction."""
    if index is not None and index.ready:
        node = index.fleet.choose(wish)
        if node is None:
            return Choice(None, index.fleet)
        exact = await load_some(connection, [node], [wish], index.fleet.held())
        if node in exact.nodes and exact.judge(wish, node).refusal is None:
            return Choice(node, exact)
        counter("novacron_placement_index_misses_total").add()
    exact = await load(connection)
    return Choice(exact.choose(wish), exact)


def why_not(fleet: Fleet, wish: Wish) -> str:
    """Say in a sentence or two why no node can take a VM, other than the one where it is."""
    others = len(fleet.nodes) - (wish.at in fleet.nodes)
    return _summary(fleet.refusals(wish, REASON_LENGTH_MAX), others)


def _summary(reasons: Sequence[str], count: int) -> str:
    text = "; ".join(reasons)
    if len(text) > REASON_LENGTH_MAX:
        text = f"{count} nodes can't take it: {text[: REASON_LENGTH_MAX - 60]}..."
    return text or "there are no nodes"


class WaitingVm(msgspec.Struct, frozen=True):
    """A VM that waits for a node. ``wish`` is None if it can't be decoded."""

    id: str
    created_at: datetime
    wish: Wish | None


async def waiting(
    connection: Connection, limit: int, after: WaitingVm | None = None, *, leave_out: Sequence[str] = ()
) -> list[WaitingVm]:
    """Return up to ``limit`` VMs that wait for a node, oldest first, from the one after ``after`` on."""
    rows = await connection.fetch(
        "SELECT id, spec, project, created_at FROM vms WHERE node IS NULL AND lost_on IS NULL AND NOT deleting"
        " AND unreconciled IS NULL AND id <> ALL($2)"
        " AND ($3::timestamptz IS NULL OR (created_at, id) > ($3, $4)) ORDER BY created_at, id LIMIT $1",
        limit, leave_out, after and after.created_at, after and after.id,
    )  # fmt: skip
    return [
        WaitingVm(row["id"], row["created_at"], next(iter(decode_each("vms", [row], wish_of)), None)) for row in rows
    ]


async def place_waiting(connection: Connection, ids: Sequence[str], index: FleetIndex | None = None) -> list[str]:
    """Give each of these VMs that waits for a node, oldest first, the best one; store why none can take it.

    Nothing is locked and nothing written until it is known where all of them go. Returns those that were placed.
    """
    began = time.perf_counter()
    await nodes.take_turn(connection)
    rows = await connection.fetch(
        f"SELECT id, name, spec, status, project, revision, trace, epoch, {ELSEWHERE} AS elsewhere FROM vms"
        " WHERE node IS NULL AND lost_on IS NULL AND NOT deleting AND unreconciled IS NULL AND id = ANY($1)"
        " ORDER BY created_at, id",
        ids,
    )
    waiting_still = [(row, row["elsewhere"]) for row in rows if row["elsewhere"] is not None]
    rows = [row for row in rows if row["elsewhere"] is None]
    wishes = await _recovering(connection, rows, {row["id"]: wish_of(row) for row in rows})
    chosen = await _choose_all(connection, list(wishes.values()), index)
    placed = [(row, node) for row in rows if (node := chosen[row["id"]].node) is not None]
    unplaced = list[tuple[Any, VmStatus]]()
    waiting_still += [
        (row, why_not(chosen[row["id"]].fleet, wishes[row["id"]])) for row in rows if chosen[row["id"]].node is None
    ]
    for row, why in waiting_still:
        was = msgspec.convert(row["status"], VmStatus)
        status = msgspec.structs.replace(was, state=VmState.PENDING, reason=why, reason_code=WaitCode.UNPLACED)
        if status != was:  # the controller is woken by what it writes here
            unplaced.append((row, status))
    happened = await _store_placed(connection, placed, began) + await _store_unplaced(connection, unplaced)
    await events.record_all(connection, happened)
    return [row["id"] for row, _ in placed]


def _status(row: asyncpg.Record) -> VmStatus:
    """Return what a VM has to be started with."""
    return bound_to(msgspec.convert(row["spec"], VmSpec), msgspec.convert(row["status"], VmStatus))


async def _recovering(
    connection: Connection, rows: Sequence[asyncpg.Record], wishes: dict[str, Wish]
) -> dict[str, Wish]:
    """Return the wishes, those of VMs that have run elsewhere with what they were started with and their volumes."""
    had = {row["id"]: _status(row) for row in rows if row["epoch"] > 0}
    if not had:
        return wishes
    attached: dict[str, list[Volume]] = {}
    for volume in (await volumes.of_vms(connection, list(had))).rows:
        attached.setdefault(volume.vm or "", []).append(volume)

    def refuses(id: str, node: Node) -> str | None:
        reasons = (volumes.unreachable(node, volume) for volume in attached.get(id, ()))
        return cannot_run(node, had[id], runs=False) or next(filter(None, reasons), None)

    return {id: wish._replace(refuses=partial(refuses, id)) if id in had else wish for id, wish in wishes.items()}


def wish_of(row: asyncpg.Record) -> Wish:
    """Return a VM that waits for a node as placement sees it."""
    return Wish(row["id"], of_project(msgspec.convert(row["spec"], VmSpec), row["project"]))


async def _choose_all(connection: Connection, wishes: Sequence[Wish], index: FleetIndex | None) -> dict[str, Choice]:
    """Choose a node for each VM, one after another: what one takes, the next does not get."""
    if index is None or not index.ready:
        fleet = await load(connection)
        return {wish.id: Choice(fleet.place(wish), fleet) for wish in wishes}
    chosen: dict[str, Choice] = {}
    for wish in wishes:
        node = index.fleet.choose(wish)
        chosen[wish.id] = Choice(node, index.fleet)
        index.assume(wish.id, node)
    missed = await _missed(connection, wishes, chosen, index)
    if missed:  # the index lags behind
        counter("novacron_placement_index_misses_total").add(count=len(missed))
        await _choose_again(connection, wishes, missed, chosen, index)
    return chosen


async def _missed(
    connection: Connection, wishes: Sequence[Wish], chosen: Mapping[str, Choice], index: FleetIndex
) -> list[Wish]:
    """Return the VMs whose node, read exactly, has no room for them after those before them."""
    names = {choice.node for choice in chosen.values() if choice.node is not None}
    exact = await load_some(connection, names, wishes, index.fleet.held()) if names else Fleet()
    missed = []
    for wish in wishes:
        node = chosen[wish.id].node
        if node is None:
            continue
        if node in exact.nodes and exact.judge(wish, node).refusal is None:
            exact.take(wish, node)
        else:
            missed.append(wish)
    return missed


async def _choose_again(
    connection: Connection, wishes: Sequence[Wish], missed: list[Wish], chosen: dict[str, Choice], index: FleetIndex
) -> None:
    """Choose for the missed VMs among all nodes, beside what was chosen for the others."""
    fleet = await load(connection)
    for wish in wishes:
        node = chosen[wish.id].node
        if wish not in missed and node is not None and node in fleet.nodes:
            fleet.take(wish, node)
    for wish in missed:
        chosen[wish.id] = Choice(fleet.place(wish), fleet)
        index.assume(wish.id, chosen[wish.id].node)


async def _store_placed(
    connection: Connection, placed: Sequence[tuple[Any, str]], began: float
) -> list[events.NewEvent]:
    """Give VMs their nodes; one that has changed meanwhile is looked at again."""
    done = await connection.fetch(
        "UPDATE vms v SET node = p.node, epoch = epoch + 1 FROM unnest($1::text[], $2::bigint[], $3::text[])"
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
        events.NewEvent("vm", row["id"], row["name"], "Placed", f"placed on {node}", project=row["project"])
        for row, node in placed
    ]


async def _store_unplaced(connection: Connection, unplaced: Sequence[tuple[Any, VmStatus]]) -> list[events.NewEvent]:
    """Store why VMs wait."""
    for row, status in unplaced:
        await connection.execute(
            "UPDATE vms SET status = $2 WHERE id = $1 AND node IS NULL", row["id"], msgspec.to_builtins(status)
        )
    return [
        events.NewEvent("vm", row["id"], row["name"], "Unplaced", status.reason, project=row["project"])
        for row, status in unplaced
    ]
