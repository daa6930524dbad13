"""Volumes."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE volumes ("
        " id text PRIMARY KEY, name text NOT NULL UNIQUE, pool text NOT NULL, kind text NOT NULL, node text NOT NULL,"
        " size_mib bigint NOT NULL, iops bigint, bytes_per_s bigint, phase text NOT NULL,"
        " error text NOT NULL DEFAULT '', used_bytes bigint NOT NULL DEFAULT 0,"
        " vm text REFERENCES vms, vm_name text, lun int, read_only boolean NOT NULL DEFAULT false, boot_order int,"
        " detaching boolean NOT NULL DEFAULT false,"
        " revision bigint NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), UNIQUE (vm, lun))"
    )
    op.execute("CREATE INDEX volumes_node ON volumes (node)")
    op.execute(
        "CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON volumes FOR EACH ROW EXECUTE FUNCTION nova_set_revision()"
    )
    op.execute(
        "CREATE TRIGGER change AFTER INSERT OR UPDATE OR DELETE ON volumes"
        " FOR EACH ROW EXECUTE FUNCTION nova_change('volume', 'id')"
    )
