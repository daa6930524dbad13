"""Images, imports that go on, and exports count in quotas."""

from __future__ import annotations

from alembic import op

revision = "0034"
down_revision = "0033"


def upgrade() -> None:
    op.execute("ALTER TABLE image_owners ADD COLUMN size_mib bigint NOT NULL DEFAULT 0")
    op.execute("ALTER TABLE imports ADD COLUMN disk_mib bigint NOT NULL DEFAULT 0")
    op.execute("ALTER TABLE imports ADD COLUMN progressed_at timestamptz NOT NULL DEFAULT now()")
    op.execute("ALTER TABLE exports ADD COLUMN disk_mib bigint NOT NULL DEFAULT 0")
    op.execute(
        "UPDATE image_owners o SET size_mib = i.size_mib FROM (SELECT image ->> 'name' AS name, max(ceil(greatest("
        "(image ->> 'size_bytes')::numeric, (image ->> 'disk_bytes')::numeric) / 1048576))::bigint AS size_mib"
        " FROM nodes n, jsonb_path_query(n.status, '$.inventory.images[*]') AS image GROUP BY 1) i"
        " WHERE i.name = o.name"
    )
    op.execute("UPDATE exports SET disk_mib = ceil(disk_bytes / 1048576.0)::bigint")
