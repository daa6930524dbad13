"""Keys of nodes that were removed or replaced, and the digests that imports give to the names of images."""

from __future__ import annotations

from alembic import op

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE revoked_keys (key_hash text PRIMARY KEY, node text NOT NULL,"
        " revoked_at timestamptz NOT NULL DEFAULT now())"
    )
    op.execute("CREATE TABLE image_digests (name text PRIMARY KEY, digest text NOT NULL)")
    op.execute(  # images that were imported before: what the node that has been here longest has
        "INSERT INTO image_digests SELECT DISTINCT ON (o.name) o.name, image ->> 'digest' FROM image_owners o, nodes n,"
        " jsonb_array_elements(n.status -> 'inventory' -> 'images') image WHERE image ->> 'name' = o.name"
        " AND n.status ? 'inventory' AND jsonb_typeof(n.status -> 'inventory') = 'object'"
        " ORDER BY o.name, n.created_at"
    )
