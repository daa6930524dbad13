"""VMs of which nodes know more than the database: what contradicts it, until an operator says who is right."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg
import msgspec

from novacron.model.names import Name
from novacron.model.ownership import Claim, OwnershipRecord
from novacron.model.unreconciled import (
    EPOCHS_UNSEEN,
    Contradiction,
    Recorded,
    UnreconciledVm,
    contradiction,
    forgotten_arrival,
)
from novacron.model.vm import Vm, VmState
from novacron.store import events, unreconciled, vms
from novacron.store.database import Connection
from novacron.store.rows import object_of
from novacron.telemetry import logs

log = logs.get(__name__)

RECORDED = """
    SELECT id, node, epoch, migration IS NOT NULL AS migrating, deleting, false AS deleted, name, project, created_at
    FROM vms WHERE id = ANY($1)
    UNION ALL SELECT vm, NULL, epoch, false, false, true, NULL, NULL, NULL
    FROM vm_tombstones t WHERE vm = ANY($1) AND NOT EXISTS (SELECT FROM vms v WHERE v.id = t.vm)
"""
STORE = """
    INSERT INTO unreconciled_vms AS u
        (id, vm, vm_name, node, contradiction, epoch, claim, reason, description, project, proven)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
    ON CONFLICT (vm, node) DO UPDATE SET vm_name = $3, contradiction = $5, epoch = $6, claim = $7, reason = $8,
        description = coalesce($9, u.description), project = $10, proven = $11
    WHERE (u.vm_name, u.contradiction, u.epoch, u.claim, u.reason, coalesce($9, u.description), u.project, u.proven)
        IS DISTINCT FROM ($3, $5, $6, $7, $8, u.description, $10, $11)
"""
WORDS = {
    Claim.NONE: "has removed it or handed it over",
    Claim.OWNER: "has it",
    Claim.RELEASED: "has handed it over",
    Claim.INCOMING: "was to receive it",
}
NOT_SHOWN = (Contradiction.ENDING, Contradiction.DAMAGED)
"""The epoch of these is the server's, not the node's."""
UNPROVEN_WORDS = "it can't prove that a server told it so"
UNPROVEN_MAX = 256
"""Claims without proof that are kept of one node."""
UNPROVEN_EPOCH_MAX = 2**52
"""No VM begins an epoch near the end of all epochs because a node says so."""
BELIEVED_MAX = 4096
"""Claims of one node that count without proof, for as long as it was given none."""
NAMED_MAX = 5
OUTDATED = "the database is older than a node's record of the VM"


class _ReservedNic(msgspec.Struct):
    network: str
    address: str | None = None


class _ReservedSpec(msgspec.Struct):
    nics: list[_ReservedNic] = []


class _ReservedVolume(msgspec.Struct):
    id: str


class _Reserved(msgspec.Struct):
    """What of a description nothing may be given out against, whatever version wrote it."""

    name: Name
    project: str
    spec: _ReservedSpec
    volumes: list[_ReservedVolume] = []


class NodeRecord(NamedTuple):
    """What a node remembers of a VM, and what it was told last that the VM is. ``held`` None: it can't read that, and
    was told ``bound_at`` which epoch since. ``proven``: a server has said it, and not the node alone."""

    vm: str
    held: OwnershipRecord | None
    description: dict[str, Any] | None = None
    proven: bool = True
    bound_at: int = 0


class _ContradictingReport(NamedTuple):
    """What a node says that contradicts the database. ``counts``: others are kept from acting against it. ``later``:
    the database is an older one, then."""

    how: Contradiction
    held: OwnershipRecord
    words: str
    counts: bool
    later: bool


class _UnreconciledBefore(NamedTuple):
    """What was stored of a node before it said anything now: of which VMs it knew more than the database, or claimed to
    without proof. ``has``: of those the ones of which it had something; ``ending``: the ones that it was to end;
    ``enough``: the epochs at which it had said enough of VMs for them to be adopted; ``epochs``: those that it has
    shown."""

    known: frozenset[str]
    unproven: frozenset[str]
    has: frozenset[str]
    ending: frozenset[str]
    enough: dict[str, int]
    epochs: dict[str, int]

    @staticmethod
    async def read(connection: Connection, node: str) -> _UnreconciledBefore:
        rows = await connection.fetch(
            "SELECT vm, claim, epoch, contradiction, proven, description IS NOT NULL AS described FROM unreconciled_vms"
            " WHERE node = $1",
            node,
        )
        unproven = frozenset(row["vm"] for row in rows if not row["proven"])
        return _UnreconciledBefore(
            known=frozenset(row["vm"] for row in rows) - unproven,
            unproven=unproven,
            has=frozenset(row["vm"] for row in rows if row["claim"] != Claim.NONE),
            ending=frozenset(row["vm"] for row in rows if row["contradiction"] == Contradiction.ENDING),
            enough={row["vm"]: row["epoch"] for row in rows if row["described"] or _is_enough(row)},
            epochs={row["vm"]: row["epoch"] for row in rows if row["contradiction"] not in NOT_SHOWN},
        )

    def went_back(self, record: NodeRecord) -> bool:
        """Say whether a node remembers less of a VM than it has said: it can't read its record of the VM any more, or
        that was replaced by an older one."""
        is_less = record.held is None or record.held.epoch < self.epochs.get(record.vm, 0)
        return record.vm in self.known and is_less

    def stays(self, record: NodeRecord) -> bool:
        """Say whether what such a node has said stays as it is: it is enough to decide by."""
        return self.went_back(record) and self.enough.get(record.vm, -1) >= record.bound_at


class _UnreconciledNow(NamedTuple):
    """The same, of what it says now."""

    known: set[str]
    unproven: set[str]


def of_row(row: asyncpg.Record | None) -> UnreconciledVm:
    """Return a row as an unreconciled VM."""
    return object_of(UnreconciledVm, row)


async def take(connection: Connection, node: str, records: Sequence[NodeRecord], *, whole: bool) -> None:
    """Compare what a node remembers of VMs with the database, and store what contradicts it. ``whole``: the node has
    nothing of any other VM."""
    mentioned = {record.vm for record in records}
    records = await _counting(connection, node, records)
    before = await _UnreconciledBefore.read(connection, node)
    contradicted = await _contradicted(connection, node, records, before)
    # What a node had once and does not mention, it has no more; that it has given a VM away remains true.
    not_mentioned = before.has - mentioned if whole else frozenset()
    has = {record.vm for record in records if record.held is not None and record.held.claim is not Claim.NONE}
    spoken_of = {record.vm for record in records} | not_mentioned
    agreed = (
        ((before.known | before.unproven) & spoken_of)
        - contradicted.known
        - contradicted.unproven
        - (before.ending & has)
    )
    await connection.execute("DELETE FROM unreconciled_vms WHERE node = $1 AND vm = ANY($2)", node, list(agreed))
    if contradicted.known or contradicted.unproven or agreed:
        await mark(connection, contradicted.known | agreed, [node])
    if contradicted.unproven and not before.unproven:
        await _alarm(connection, node, contradicted.unproven)


def _is_enough(row: asyncpg.Record) -> bool:
    """Say whether what a node has said of a VM is of use though it does not describe the VM."""
    return row["claim"] in (Claim.NONE, Claim.INCOMING) or row["contradiction"] in NOT_SHOWN


async def _counting(connection: Connection, node: str, records: Sequence[NodeRecord]) -> list[NodeRecord]:
    """Return what counts of what a node says: without proof nothing, if it was not accepted, and for some time all that
    an agent says which was given no proofs before."""
    if all(record.proven for record in records):
        return list(records)
    if await is_believed(connection, node):
        return [record._replace(proven=number < BELIEVED_MAX) for number, record in enumerate(records)]
    is_accepted = await connection.fetchval(
        "SELECT spec -> 'accepted' IS DISTINCT FROM 'false' FROM nodes WHERE name = $1", node
    )
    return [record for record in records if record.proven or is_accepted]


async def is_believed(connection: Connection, node: str) -> bool:
    """Say whether a node is believed without proofs: servers have given it none until lately."""
    is_: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM node_leases l JOIN nodes n ON n.name = l.node WHERE l.node = $1"
        " AND l.unproven_until > clock_timestamp() AND n.spec -> 'accepted' IS DISTINCT FROM 'false')",
        node,
    )
    return is_


async def proved(connection: Connection, node: str) -> None:
    """A node has shown a proof with everything that it claims: from now on its claims need one."""
    await connection.execute(
        "UPDATE node_leases SET unproven_until = NULL WHERE node = $1 AND unproven_until IS NOT NULL", node
    )


async def _contradicted(
    connection: Connection, node: str, records: Sequence[NodeRecord], before: _UnreconciledBefore
) -> _UnreconciledNow:  # fmt: skip
    """Return the VMs of which a node knows more than the database, or may, and store how."""
    rows = {row["id"]: row for row in await connection.fetch(RECORDED, [record.vm for record in records])}
    contradicted = _UnreconciledNow(set(), set())
    unheard_since = None
    if any(record.held is None for record in records):
        unheard_since = await unreconciled.unheard_since(connection, node)
    for record in records:
        row = rows.get(record.vm)
        await _let_arrival_end(connection, node, record, row)
        if before.stays(record) or await _ended_there(connection, node, record, row):
            contradicted.known.add(record.vm)
            continue
        said = _contradiction(node, record, row, unheard_since)
        if before.went_back(record):
            said = _unread(record, row, counts=True)
        if said is not None and _takes(record.vm, said, before, contradicted):
            await _store(connection, node, record, said, row)
    return contradicted


def _takes(vm: str, said: _ContradictingReport, before: _UnreconciledBefore, found: _UnreconciledNow) -> bool:
    """Note what contradicts the database; say whether it is to be stored: not too much, and nothing that counts less
    than what is stored."""
    if said.counts or vm in before.known:
        found.known.add(vm)
        return said.counts
    if vm in before.unproven or len(before.unproven | found.unproven) < UNPROVEN_MAX:
        found.unproven.add(vm)
        return True
    return False


def _contradiction(
    node: str, record: NodeRecord, row: asyncpg.Record | None, unheard_since: datetime | None
) -> _ContradictingReport | None:  # fmt: skip
    """Return what of a record contradicts the database. ``unheard_since``: when that was found to be older, if the node
    was not heard since."""
    held, recorded = record.held, _recorded(row)
    if held is None:
        counts = record.proven or unheard_since is not None
        return _unread(record, row, counts=counts) if _may_be_later(record, row, unheard_since) else None
    how = contradiction(node, held, recorded)
    if how is None:
        return None
    later = how is not Contradiction.GONE or recorded is None or held.epoch > recorded.epoch
    words = f"{WORDS[held.claim]}, at epoch {held.epoch}"
    return _ContradictingReport(how, held, words, counts=record.proven or not later, later=later)


def _may_be_later(record: NodeRecord, row: asyncpg.Record | None, unheard_since: datetime | None) -> bool:
    """Say whether a record that its node can't read may be of an epoch that the database does not know. The one at
    which it deleted the VM was given to nobody, unless by another database."""
    if row is None or (record.proven and record.bound_at > row["epoch"] - row["deleted"]):
        return True
    return unheard_since is not None and not row["deleted"] and row["created_at"] < unheard_since


def _unread(record: NodeRecord, row: asyncpg.Record | None, *, counts: bool) -> _ContradictingReport:
    """Return what stands for a record that can't be read: a promise, at an epoch above any that it may be of."""
    known = max(0 if row is None else row["epoch"], record.bound_at)
    held = OwnershipRecord(known + EPOCHS_UNSEEN, Claim.RELEASED)
    words = "may have it: its record of the VM is damaged"
    return _ContradictingReport(Contradiction.DAMAGED, held, words, counts=counts, later=True)


def _recorded(row: asyncpg.Record | None) -> Recorded | None:
    return None if row is None else Recorded(*(row[field] for field in Recorded._fields))


async def _ended_there(connection: Connection, node: str, record: NodeRecord, row: asyncpg.Record | None) -> bool:
    """Remove a VM that is being deleted, says the database, and is removed already, says its node; say whether it
    was."""
    held, recorded = record.held, _recorded(row)
    if held is None or recorded is None or not recorded.deleting or recorded.node != node:
        return False
    if held.claim is not Claim.NONE or held.epoch < recorded.epoch:
        return False
    await _remove(connection, record.vm, held.epoch if record.proven else recorded.epoch)
    return True


async def _let_arrival_end(connection: Connection, node: str, record: NodeRecord, row: asyncpg.Record | None) -> None:
    """Let a node remove what a migration brought that the database does not know: it obeys the next epoch."""
    held, recorded = record.held, _recorded(row)
    if held is None or recorded is None or not record.proven or not forgotten_arrival(node, held, recorded):
        return
    done = await connection.execute(
        "UPDATE vms SET epoch = epoch + 1 WHERE id = $1 AND epoch = $2 AND migration IS NULL AND unreconciled IS NULL"
        " AND node IS DISTINCT FROM $3",
        record.vm, held.epoch, node,
    )  # fmt: skip
    if done == "UPDATE 1":
        log.warning("a node holds what a forgotten migration brought; it is to remove that", node=node, vm=record.vm)


async def _remove(connection: Connection, id: str, epoch: int) -> None:
    vm = await vms.get(connection, id, lock=True)
    await vms.remove(connection, msgspec.structs.replace(vm, epoch=max(vm.epoch, epoch)))
    await connection.execute("DELETE FROM unreconciled_vms WHERE vm = $1", vm.id)


async def _store(
    connection: Connection, node: str, record: NodeRecord, said: _ContradictingReport, row: asyncpg.Record | None
) -> None:
    held, described, words = said.held, _sound(node, record), said.words
    if not said.counts:
        words = f"{said.words}; {UNPROVEN_WORDS}"
        held = msgspec.structs.replace(held, epoch=min(held.epoch, UNPROVEN_EPOCH_MAX))
    description = described or {}
    name = str(description.get("name") or (row and row["name"]) or record.vm)
    project = (row and row["project"]) or await connection.fetchval(
        "SELECT name FROM projects WHERE id = $1", str(description.get("project", ""))
    )
    reason = f"node {node} {words}; {_database_says(row)}"
    done = await connection.execute(
        STORE, f"{record.vm}.{secrets.token_hex(4)}", record.vm, name, node, said.how, held.epoch, held.claim, reason,
        described, project, said.counts,
    )  # fmt: skip
    if done == "INSERT 0 1" and said.counts:
        if said.later:
            await unreconciled.restored(connection)
        await events.record(connection, events.NewEvent("vm", record.vm, name, "Unreconciled", reason, project=project))


async def _alarm(connection: Connection, node: str, ids: Iterable[str]) -> None:
    """Say that a node claims VMs without proof. Nobody else is concerned."""
    named = sorted(ids)
    shown = ", ".join(named[:NAMED_MAX]) + ("..." if len(named) > NAMED_MAX else "")
    message = (
        f"it claims newer records of {len(named)} VMs than the database, without proof from a server: {shown}; nothing"
        f" waits for it; see: novacron vm unreconciled, and if the host may be compromised: novacron node remove"
        f" {node} --force"
    )
    await events.record(connection, events.NewEvent("node", node, node, "UnprovenClaims", message))
    log.warning("a node claims VMs without proof", node=node, vms=len(named))


def _sound(node: str, record: NodeRecord) -> dict[str, Any] | None:
    """Return a node's description of a VM, or None if it is none."""
    if record.description is None:
        return None
    try:
        msgspec.convert(record.description, _Reserved)
    except msgspec.ValidationError as error:
        log.warning("a node's description of a VM is of no use", node=node, vm=record.vm, error=str(error))
        return None
    return record.description


def _database_says(row: asyncpg.Record | None) -> str:
    if row is None:
        return "the database does not know it"
    if row["deleted"]:
        return f"in the database it was deleted at epoch {row['epoch']}"
    where = "on no node" if row["node"] is None else f"on {row['node']}"
    return f"the database has it {where}, at epoch {row['epoch']}"


async def is_owned_elsewhere(connection: Connection, vm: str, node: str) -> bool:
    """Say whether another node than the database's owns a VM: it can be adopted from there."""
    is_: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM unreconciled_vms"
        " WHERE vm = $1 AND node <> $2 AND claim = $3 AND contradiction <> 'ending' AND proven)",
        vm, node, Claim.OWNER,
    )  # fmt: skip
    return is_


async def node_removed(connection: Connection, node: str) -> None:
    """Nobody asks a node any more what it knows: what others know of its VMs counts, above what it had. A VM that it
    had not may be another's at the same epoch, which connects later."""
    rows = await connection.fetch(
        "DELETE FROM unreconciled_vms WHERE node = $1 RETURNING vm, epoch, claim, proven", node
    )
    rows = [row for row in rows if row["proven"]]
    after = [row["epoch"] + (row["claim"] in (Claim.OWNER, Claim.RELEASED)) for row in rows]
    await connection.execute(
        "UPDATE vms SET unreconciled = NULL, epoch = greatest(vms.epoch, u.epoch)"
        " FROM unnest($1::text[], $2::bigint[]) AS u (vm, epoch)"
        " WHERE id = u.vm AND unreconciled IS NOT NULL"
        " AND NOT EXISTS (SELECT FROM unreconciled_vms o WHERE o.vm = id AND o.proven)",
        [row["vm"] for row in rows], after,
    )  # fmt: skip
    await mark(connection, {row["vm"] for row in rows}, [])


async def let_end(connection: Connection, vm: Vm, every: Iterable[UnreconciledVm]) -> None:
    """The database is right about a VM: it begins nowhere before others have ended what they have of it."""
    for record in every:
        reason = (
            f"node {record.node} {unreconciled.ENDS}; if that host is gone for good: novacron node remove"
            f" {record.node} --force"
        )
        await connection.execute(
            STORE, f"{vm.id}.{secrets.token_hex(4)}", vm.id, vm.name, record.node, Contradiction.ENDING, vm.epoch,
            record.claim, reason, record.description, vm.project, True,
        )  # fmt: skip
    await mark(connection, [vm.id], [record.node for record in every])


async def record_lost(connection: Connection, node: str, id: str, epoch: int) -> None:
    """A node that is to end what it has of a VM does nothing at this epoch, which is the first that it has heard since
    its record was damaged: it obeys the next."""
    done = await connection.execute(
        "UPDATE vms SET unreconciled = NULL, epoch = epoch + 1 WHERE id = $2 AND epoch = $3 AND EXISTS"
        " (SELECT FROM unreconciled_vms WHERE vm = $2 AND node = $1 AND contradiction = 'ending')",
        node, id, epoch,
    )  # fmt: skip
    if done == "UPDATE 1":
        await mark(connection, [id], [node])


async def ended(connection: Connection, node: str, id: str) -> None:
    """A node has nothing of a VM any more."""
    done = await connection.execute(
        "DELETE FROM unreconciled_vms WHERE node = $1 AND vm = $2 AND contradiction = 'ending'", node, id
    )
    if done == "DELETE 1":
        await mark(connection, [id], [node])


async def mark(connection: Connection, ids: Iterable[str], nodes: Iterable[str]) -> None:
    """Let VMs and nodes say what is unreconciled of them, or that nothing is any more."""
    for id in sorted(ids):
        reasons = await connection.fetch(
            "SELECT reason FROM unreconciled_vms WHERE vm = $1 AND proven ORDER BY epoch DESC, node",
            id,
        )
        if reasons:
            await _withhold(connection, id, "; ".join(row["reason"] for row in reasons))
        else:
            await connection.execute(
                "UPDATE vms SET unreconciled = NULL, epoch = epoch + 1 WHERE id = $1 AND unreconciled IS NOT NULL", id
            )
    await count(connection, nodes)


async def count(connection: Connection, nodes: Iterable[str]) -> None:
    """Let nodes say of how many VMs they know more than the database."""
    await connection.execute(
        "UPDATE nodes n SET status = n.status || jsonb_build_object('unreconciled_vms', u.count) FROM"
        " (SELECT name, (SELECT count(*) FROM unreconciled_vms WHERE node = name"
        " AND proven) AS count FROM nodes) u"
        " WHERE n.name = u.name AND n.name = ANY($1)"
        " AND coalesce((n.status ->> 'unreconciled_vms')::bigint, 0) <> u.count",
        sorted(nodes),
    )


async def _withhold(connection: Connection, id: str, reason: str) -> None:
    """Let nobody act on a VM until it is reconciled; a migration that the database knows has ended, somehow."""
    await connection.execute(
        "UPDATE vms SET unreconciled = $2, migration = NULL, status = status || $3 WHERE id = $1"
        " AND unreconciled IS DISTINCT FROM $2",
        id, reason, {"state": VmState.UNKNOWN, "reason": reason},
    )  # fmt: skip
    await connection.execute(
        "UPDATE migrations SET phase = 'failed', error = $2, finished_at = clock_timestamp()"
        " WHERE vm = $1 AND finished_at IS NULL",
        id, OUTDATED,
    )  # fmt: skip
