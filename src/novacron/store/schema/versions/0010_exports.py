"""Exports of VMs."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE exports ("
        " id text PRIMARY KEY, vm text NOT NULL, vm_name text NOT NULL, node text NOT NULL, spec jsonb NOT NULL,"
        " phase text NOT NULL, size_bytes bigint NOT NULL DEFAULT 0, disk_bytes bigint NOT NULL DEFAULT 0,"
        " sha256 text NOT NULL DEFAULT '', error text NOT NULL DEFAULT '',"
        " revision bigint NOT NULL, created_at timestamptz NOT NULL DEFAULT now())"
    )
    op.execute("CREATE INDEX exports_node ON exports (node)")
    op.execute(
        "CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON exports FOR EACH ROW EXECUTE FUNCTION nova_set_revision()"
    )
    op.execute(
        "CREATE TRIGGER change AFTER INSERT OR UPDATE OR DELETE ON exports"
        " FOR EACH ROW EXECUTE FUNCTION nova_change('export', 'id')"
    )
