"""Replicas of VMs on other nodes."""

from __future__ import annotations

from alembic import op

revision = "0052"
down_revision = "0051"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE replicas (id text PRIMARY KEY, vm text NOT NULL, vm_name text NOT NULL, node text NOT NULL,"
        " site text NOT NULL, phase text NOT NULL, rpo_s integer NOT NULL, points_kept integer NOT NULL,"
        " points jsonb NOT NULL DEFAULT '[]', used_bytes bigint NOT NULL DEFAULT 0, error text NOT NULL DEFAULT '',"
        " reason_code text NOT NULL DEFAULT '', late_at timestamptz,"
        " project text NOT NULL DEFAULT 'default' REFERENCES projects (name) ON UPDATE CASCADE,"
        " revision bigint NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), UNIQUE (vm, node))"
    )
    op.execute("CREATE INDEX replicas_node ON replicas (node)")
    op.execute("CREATE INDEX replicas_project ON replicas (project)")
    op.execute(
        "CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON replicas FOR EACH ROW EXECUTE FUNCTION nova_set_revision()"
    )
    op.execute(
        "CREATE TRIGGER change AFTER INSERT OR UPDATE OR DELETE ON replicas"
        " FOR EACH ROW EXECUTE FUNCTION nova_change('replica', 'id')"
    )
