"""Display names, descriptions and tags of all kinds of objects."""

from __future__ import annotations

from alembic import op

revision = "0036"
down_revision = "0035"

DESCRIBED = (
    "vms", "volumes", "networks", "snapshots", "projects", "nodes", "security_groups", "floating_addresses", "forwards",
)  # fmt: skip
COLUMNS = {"display_name": "text NOT NULL DEFAULT ''", "description": "text NOT NULL DEFAULT ''",
           "tags": "jsonb NOT NULL DEFAULT '[]'"}  # fmt: skip


def upgrade() -> None:
    for table in DESCRIBED:
        added = ", ".join(f"ADD COLUMN IF NOT EXISTS {column} {type_}" for column, type_ in COLUMNS.items())
        op.execute(f"ALTER TABLE {table} {added}")
    columns = ", ".join(f"{column} {type_}" for column, type_ in COLUMNS.items())
    op.execute(f"CREATE TABLE image_metadata (name text PRIMARY KEY, {columns}, revision bigint NOT NULL)")
    op.execute(
        "CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON image_metadata"
        " FOR EACH ROW EXECUTE FUNCTION nova_set_revision()"
    )
    op.execute(
        "CREATE TRIGGER change AFTER INSERT OR UPDATE OR DELETE ON image_metadata"
        " FOR EACH ROW EXECUTE FUNCTION nova_change('image-metadata', 'name')"
    )
