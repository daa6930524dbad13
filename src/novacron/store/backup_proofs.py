"""Proofs of backups: what was asked for, how far each is, and the VMs that are made for them."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from novacron.model.backup import Backup, BackupPhase
from novacron.model.backup_policy import BackupPolicy
from novacron.model.backup_proof import UNDER_WAY, BackupProof, ProofPhase, ProofProbe
from novacron.model.errors import Conflict, IllegalState, NotFound
from novacron.model.vm import Vm, VmAction
from novacron.store import backup_keys, backups, clones, events, vm_backups, vms
from novacron.store.database import Connection
from novacron.store.hindered import ERROR_LENGTH_MAX

FORGOTTEN_AFTER = timedelta(days=2)
"""A proof that is longer in one phase was on a node that is gone: it can be asked for anew."""
TRIED_AT_ONCE = 8
"""Proofs that one pass tries to begin on a node: one of them does."""
IS_UNDER_WAY = "proof ->> 'phase' IN ('waiting', 'restoring', 'starting')"


LAST_TURNS = (
    "SELECT node, project, coalesce(max(proof ->> 'since') FILTER (WHERE proof ->> 'phase' <> 'waiting'),"
    "   min(proof ->> 'asked_at')) AS at"
    " FROM backups WHERE node = ANY($1) AND proof IS NOT NULL AND project IN"
    f"   (SELECT project FROM backups WHERE node = ANY($1) AND {IS_UNDER_WAY}) GROUP BY node, project"
)
"""When each project that wants a proof on a node had its last one there; before its first, since when it waits."""


async def ask(connection: Connection, id: str, probe: ProofProbe, actor: str) -> Backup:
    """Have a VM made of a backup that has to start. Raises NotFound, IllegalState, Conflict."""
    backup = await backups.get(connection, id, lock=True)
    if backup.phase not in (BackupPhase.KEPT, BackupPhase.VERIFYING):
        raise IllegalState(
            f"backup {id} is {backup.phase}: no VM can be created from it",
            hint="choose another one: novacron backup list",
        )
    await backup_keys.check_readable(connection, backup)
    now = await _now(connection)
    if is_under_way(backup) and backup.proof is not None and now - backup.proof.since < FORGOTTEN_AFTER:
        raise Conflict(f"backup {id} is already being proved", hint=f"see: novacron backup show {id}")
    await connection.execute("DELETE FROM backup_pictures WHERE backup = $1", id)
    asked = await _store(connection, backup, BackupProof(ProofPhase.WAITING, probe, now, now))
    await _record(connection, backup, "BackupProofAsked", id, actor)
    return asked


def is_under_way(backup: Backup) -> bool:
    """Say whether a backup is being proved."""
    return backup.proof is not None and backup.proof.phase in UNDER_WAY


async def under_way(connection: Connection, nodes: Sequence[str]) -> Sequence[str]:
    """Return the ids of backups of these nodes that are being proved: of each node those that have a VM, or some that
    wait: projects in rotation, that first of which none was begun for the longest time. Those that could not begin
    yet, for want of room or of their project's quota, come after all others and in any order, so that none of them
    keeps others waiting."""
    rows = await connection.fetch(
        "SELECT id FROM (SELECT id, node, proof ->> 'phase' AS phase, row_number() OVER (PARTITION BY node"
        "   ORDER BY proof ->> 'phase' = 'waiting', proof ->> 'error' <> '', last.at,"
        "   CASE proof ->> 'error' WHEN '' THEN proof ->> 'asked_at' ELSE random()::text END) AS n,"
        "   bool_or(proof ->> 'phase' <> 'waiting') OVER (PARTITION BY node) AS is_busy"
        f"  FROM backups JOIN ({LAST_TURNS}) last USING (node, project) WHERE {IS_UNDER_WAY}) AS of_node"
        " WHERE phase <> 'waiting' OR NOT is_busy AND n <= $2 ORDER BY n, id",
        list(nodes), TRIED_AT_ONCE,
    )  # fmt: skip
    return [row["id"] for row in rows]


async def begin(connection: Connection, id: str) -> None:
    """Make the VM of a backup that waits to be proved, unless its node proves another one. Raises NovaError."""
    node = (await backups.get(connection, id)).node
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext($1))", f"novacron.proof.{node}")
    backup = await backups.get(connection, id, lock=True)
    if backup.proof is None or backup.proof.phase is not ProofPhase.WAITING:
        return
    busy = "SELECT EXISTS (SELECT FROM backups WHERE node = $1 AND proof ->> 'phase' IN ('restoring', 'starting'))"
    if await connection.fetchval(busy, node):
        return
    description = f"created from {id} of VM {backup.vm_name} to test that it starts; deleted afterwards"
    name = f"proof-{secrets.token_hex(6)}"
    asked = backups.NewRestore(name, dict(clones.ISOLATED), None, {"description": description})
    vm = await backups.restore(connection, id, asked, events.SYSTEM)
    await connection.execute("UPDATE vms SET proof_of = $2 WHERE id = $1", vm.id, id)
    await enter(connection, backup, ProofPhase.RESTORING, vm=vm.id)


async def enter(connection: Connection, backup: Backup, phase: ProofPhase, **changes: object) -> Backup:
    """Store how far a proof is that is under way, with what changes beside."""
    assert backup.proof is not None
    changes = {"phase": phase, "since": await _now(connection), "error": "", "reason_code": "", **changes}
    return await _store(connection, backup, msgspec.structs.replace(backup.proof, **changes))


async def say(connection: Connection, id: str, error: str, code: str) -> None:
    """Store what a proof waits for; an event says it when that begins."""
    backup = await backups.get(connection, id, lock=True)
    before, error = backup.proof, error[:ERROR_LENGTH_MAX]
    if not is_under_way(backup) or before is None or (before.error, before.reason_code) == (error, code):
        return
    await _store(connection, backup, msgspec.structs.replace(before, error=error, reason_code=code))
    if code not in ("", before.reason_code):
        await _record(connection, backup, code, f"the proof of {id}: {error}")


async def end(connection: Connection, seen: Backup, outcome: BackupProof, picture: bytes | None) -> None:
    """Store how a proof ended; nothing, if it is not as it was seen any more."""
    try:
        backup = await backups.get(connection, seen.id, lock=True)
    except NotFound:
        return
    if not is_under_way(backup) or backup.proof is None or seen.proof is None:
        return
    if (backup.proof.asked_at, backup.proof.vm) != (seen.proof.asked_at, seen.proof.vm):
        return
    if picture is not None:
        await connection.execute(
            "INSERT INTO backup_pictures (backup, png) VALUES ($1, $2) ON CONFLICT (backup) DO UPDATE SET png = $2",
            backup.id, picture,
        )  # fmt: skip
    ended = msgspec.structs.replace(
        outcome, since=await _now(connection), picture=picture is not None, error=outcome.error[:ERROR_LENGTH_MAX]
    )
    await _store(connection, backup, ended)
    await vm_backups.refresh(connection, [backup.vm])
    if ended.phase is ProofPhase.PROVED:
        await _record(connection, backup, "BackupProved", f"{backup.id}: {ended.answer}, after {ended.start_s:.0f} s")
    else:
        await _record(connection, backup, "BackupNotProved", f"{backup.id}: {ended.error}")


async def vm_of(connection: Connection, backup: Backup) -> Vm | None:
    """Return the VM that was made of a backup to prove it; None: it is gone. Raises UnreadableRow."""
    assert backup.proof is not None
    with contextlib.suppress(NotFound):
        vm = await vms.get(connection, backup.proof.vm)
        return None if vm.deleting else vm
    return None


async def picture(connection: Connection, id: str) -> bytes:
    """Return the picture of the last proof of a backup, as PNG. Raises NotFound."""
    png: bytes | None = await connection.fetchval("SELECT png FROM backup_pictures WHERE backup = $1", id)
    if png is None:
        raise NotFound(
            f"there is no screenshot of backup {id}",
            hint=f"proofs of VMs with a display take one: novacron backup prove {id}",
        )
    return png


async def due(connection: Connection, policy: BackupPolicy) -> Sequence[str]:
    """Return backups of a policy that are to be proved: of each node that proves nothing the one that waits longest,
    and before those the newest one that was never tried. What failed is tried again the next day."""
    if policy.spec.prove_days is None:
        return []
    rows = await connection.fetch(
        "SELECT due.id FROM nodes n CROSS JOIN LATERAL (SELECT b.id FROM backups b"
        "  WHERE b.policy = $1 AND b.node = n.name AND b.phase = 'kept'"
        "   AND (b.encryption_key = '' OR EXISTS (SELECT FROM project_keys k WHERE k.id = b.encryption_key"
        "     AND k.wrapped IS NOT NULL)) AND (b.proof IS NULL"
        "   OR (b.proof ->> 'since')::timestamptz < now() - make_interval("
        "       days => CASE b.proof ->> 'phase' WHEN 'failed' THEN 1 ELSE $2 END))"
        "  ORDER BY (b.proof ->> 'since')::timestamptz NULLS FIRST, b.created_at DESC LIMIT 1) due"
        " WHERE n.status -> 'ready' = 'true'"
        f" AND NOT EXISTS (SELECT FROM backups w WHERE w.node = n.name AND {IS_UNDER_WAY})",
        policy.id, policy.spec.prove_days,
    )  # fmt: skip
    return [row["id"] for row in rows]


LEFT_OVER = (
    "v.proof_of <> '' AND NOT v.deleting AND NOT EXISTS"
    f" (SELECT FROM backups b WHERE b.id = v.proof_of AND b.proof ->> 'vm' = v.id AND {IS_UNDER_WAY})"
)
"""VM ``v`` was made for a proof that has ended, or whose backup is gone."""


async def left_over(connection: Connection) -> Sequence[str]:
    """Return the ids of VMs that were made for proofs and are not needed any more."""
    return [row["id"] for row in await connection.fetch(f"SELECT v.id FROM vms v WHERE {LEFT_OVER} ORDER BY v.id")]


async def delete_left_over(connection: Connection, id: str) -> None:
    """Delete such a VM, if it still is one. Raises NovaError."""
    free = f"SELECT v.id FROM vms v WHERE v.id = $1 AND {LEFT_OVER} FOR UPDATE SKIP LOCKED"
    if await connection.fetchval(free, id) is not None:
        await connection.execute("UPDATE vms SET spec = jsonb_set(spec, '{protected}', 'false') WHERE id = $1", id)
        await vms.act(connection, id, VmAction.DELETE, None, events.SYSTEM, 0)


async def _now(connection: Connection) -> datetime:
    now: datetime = await connection.fetchval("SELECT now()")
    return now


async def _store(connection: Connection, backup: Backup, proof: BackupProof) -> Backup:
    row = await connection.fetchrow(
        "UPDATE backups SET proof = $2 WHERE id = $1 RETURNING *", backup.id, msgspec.to_builtins(proof)
    )
    return backups.of_row(row)


async def _record(connection: Connection, backup: Backup, reason: str, message: str, actor: str = "system") -> None:
    new = events.NewEvent("vm", backup.vm, backup.vm_name, reason, message, actor, project=backup.project)
    await events.record(connection, new)
