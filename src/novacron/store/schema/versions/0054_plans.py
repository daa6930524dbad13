"""Recovery plans, and how their runs went."""

from __future__ import annotations

from alembic import op

revision = "0054"
down_revision = "0053"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE plans (id text PRIMARY KEY, name text NOT NULL, vms jsonb NOT NULL,"
        " runs jsonb NOT NULL DEFAULT '[]',"
        " project text NOT NULL DEFAULT 'default' REFERENCES projects (name) ON UPDATE CASCADE,"
        " revision bigint NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), UNIQUE (project, name))"
    )
    op.execute(
        "CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON plans FOR EACH ROW EXECUTE FUNCTION nova_set_revision()"
    )
    op.execute(
        "CREATE TRIGGER change AFTER INSERT OR UPDATE OR DELETE ON plans"
        " FOR EACH ROW EXECUTE FUNCTION nova_change('plan', 'id')"
    )
