"""Snapshots of VMs."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE snapshots ("
        " id text PRIMARY KEY, vm text NOT NULL REFERENCES vms ON DELETE CASCADE, vm_name text NOT NULL,"
        " name text NOT NULL, parent text, memory boolean NOT NULL, quiesce boolean NOT NULL, vcpus int NOT NULL,"
        " memory_mib int NOT NULL, phase text NOT NULL, error text NOT NULL DEFAULT '', pause_ms double precision,"
        " revision bigint NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), UNIQUE (vm, name))"
    )
    op.execute("ALTER TABLE vms ADD COLUMN snapshot text")
    op.execute(
        "CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON snapshots FOR EACH ROW EXECUTE FUNCTION nova_set_revision()"
    )
    op.execute(
        "CREATE TRIGGER change AFTER INSERT OR UPDATE OR DELETE ON snapshots"
        " FOR EACH ROW EXECUTE FUNCTION nova_change('snapshot', 'id')"
    )
