"""What backups each VM has, as its ``backups``: how old the newest one is, and when that is too old."""

from __future__ import annotations

from collections.abc import Sequence

from novacron.store.backup_policies import COVERS
from novacron.store.database import UNSTORABLE, Connection
from novacron.store.rows import report_bad_row
from novacron.store.savepoint import savepoint

VMS_MAX = 1000
"""VMs that one statement looks at."""

# ``late_at`` is the first moment at which a policy does not keep its promise: the VM's newest backup in the policy's
# repository, whoever asked for it, is too old then. Without one, the promise counts from when the policy covers it.
REFRESH = f"""
WITH newest AS MATERIALIZED (
    SELECT vm, repository, max(created_at) AS at, max(created_at) FILTER (WHERE verified_at IS NOT NULL) AS verified_at,
        max(created_at) FILTER (WHERE proof ->> 'phase' = 'proved') AS proved_at,
        max((proof ->> 'since')::timestamptz) FILTER (WHERE proof ->> 'phase' = 'proved') AS proof_at,
        max((proof ->> 'since')::timestamptz) FILTER (WHERE proof ->> 'phase' = 'failed') AS failed_at
    FROM backups WHERE phase IN ('kept', 'verifying') AND vm = ANY($1) GROUP BY vm, repository
), of_vm AS (
    SELECT vm, max(at) AS newest_at, max(verified_at) AS verified_at, max(proved_at) AS proved_at,
        coalesce(max(failed_at) > coalesce(max(proof_at), '-infinity'), false) AS proof_failed
    FROM newest GROUP BY vm
), covering AS (
    SELECT v.id AS vm, jsonb_agg(p.name ORDER BY p.name) AS policies,
        min(coalesce(n.at, greatest(v.created_at, p.effective_from)) + make_interval(secs => p.promise_s)) AS late_at
    FROM vms v JOIN backup_policies p ON {COVERS}
    LEFT JOIN newest n ON n.vm = v.id AND n.repository = p.repository WHERE v.id = ANY($1) GROUP BY v.id
), present AS (
    SELECT v.id, v.backups AS before, jsonb_build_object(
        'policies', coalesce(c.policies, '[]'), 'newest_at', o.newest_at, 'verified_at', o.verified_at,
        'late_at', c.late_at, 'proved_at', o.proved_at, 'proof_failed', coalesce(o.proof_failed, false)
    ) AS backups
    FROM vms v LEFT JOIN of_vm o ON o.vm = v.id LEFT JOIN covering c ON c.vm = v.id WHERE v.id = ANY($1)
), free AS (
    SELECT v.id FROM vms v WHERE v.id IN (SELECT id FROM present WHERE before <> backups) ORDER BY v.id
    FOR UPDATE SKIP LOCKED
)
UPDATE vms v SET backups = p.backups FROM present p JOIN free USING (id) WHERE v.id = p.id
"""


async def refresh(connection: Connection, vms: Sequence[str]) -> None:
    """Bring up to date what is said of the backups of these VMs; one that somebody else changes waits for the next
    time."""
    await connection.execute(REFRESH, list(vms))


async def refresh_after(connection: Connection, id: str) -> str:
    """Do the same for the next VMs behind this one, in the order of their ids; return the last one, empty: that was
    all."""
    rows = await connection.fetch("SELECT id FROM vms WHERE id > $1 ORDER BY id LIMIT $2", id, VMS_MAX)
    await _refresh_each(connection, [row["id"] for row in rows])
    return rows[-1]["id"] if len(rows) == VMS_MAX else ""


async def _refresh_each(connection: Connection, vms: Sequence[str]) -> None:
    """Refresh VMs at once; if a row of one of them is no good, find that by halving, and leave it out."""
    try:
        async with savepoint(connection):
            await refresh(connection, vms)
    except UNSTORABLE as error:
        if len(vms) == 1:
            report_bad_row("backups", vms[0], error)
            return
        middle = len(vms) // 2
        for half in (vms[:middle], vms[middle:]):
            await _refresh_each(connection, half)
