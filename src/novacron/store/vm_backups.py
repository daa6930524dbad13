"""What backups each VM has, as its ``backups``: how old the newest one is, and when that is too old."""

from __future__ import annotations

from collections.abc import Sequence

from novacron.store.backup_policies import COVERS
from novacron.store.database import Connection

CHANGES_MAX = 2000
"""VMs that one statement changes: each change goes to everybody who follows VMs."""

# ``late_at`` is the first moment at which a policy does not keep its promise: the VM's newest backup in the policy's
# repository, whoever asked for it, is too old then. Without one, the promise counts from when the policy covers it.
REFRESH = f"""
WITH covering AS (
    SELECT v.id AS vm, p.name,
        coalesce((SELECT max(b.created_at) FROM backups b WHERE b.vm = v.id AND b.repository = p.repository
                  AND b.phase IN ('kept', 'verifying')), greatest(v.created_at, p.effective_from))
        + make_interval(secs => p.promise_s) AS late_at
    FROM vms v JOIN backup_policies p ON {COVERS} WHERE $1::text[] IS NULL OR v.id = ANY($1)
), present AS (
    SELECT v.id, jsonb_build_object(
        'policies', coalesce((SELECT jsonb_agg(c.name ORDER BY c.name) FROM covering c WHERE c.vm = v.id), '[]'),
        'newest_at', b.newest_at, 'verified_at', b.verified_at,
        'late_at', (SELECT min(c.late_at) FROM covering c WHERE c.vm = v.id)
    ) AS backups
    FROM vms v CROSS JOIN LATERAL (
        SELECT max(created_at) AS newest_at, max(created_at) FILTER (WHERE verified_at IS NOT NULL) AS verified_at
        FROM backups WHERE vm = v.id AND phase IN ('kept', 'verifying')
    ) b WHERE $1::text[] IS NULL OR v.id = ANY($1)
), changed AS (
    SELECT p.id, p.backups FROM present p JOIN vms v USING (id)
    WHERE v.backups <> p.backups ORDER BY v.id LIMIT {CHANGES_MAX} FOR UPDATE OF v SKIP LOCKED
)
UPDATE vms v SET backups = c.backups FROM changed c WHERE v.id = c.id
"""


async def refresh(connection: Connection, vms: Sequence[str] | None = None) -> bool:
    """Bring up to date what is said of the backups of these VMs; None: of all. Return whether that is done: VMs that
    somebody else is changing, and those beyond ``CHANGES_MAX``, wait for the next time."""
    changed = await connection.execute(REFRESH, None if vms is None else list(vms))
    return int(changed.rpartition(" ")[2]) < CHANGES_MAX
