"""Images that are imported."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE imports ("
        " id text PRIMARY KEY, spec jsonb NOT NULL, node text NOT NULL, phase text NOT NULL,"
        " held_bytes bigint NOT NULL DEFAULT 0, error text NOT NULL DEFAULT '',"
        " aborting boolean NOT NULL DEFAULT false,"
        " revision bigint NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), finished_at timestamptz)"
    )
    op.execute("CREATE UNIQUE INDEX imports_one_active ON imports ((spec ->> 'name')) WHERE finished_at IS NULL")
    op.execute("CREATE INDEX imports_active ON imports (node) WHERE finished_at IS NULL")
    op.execute(
        "CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON imports FOR EACH ROW EXECUTE FUNCTION nova_set_revision()"
    )
    op.execute(
        "CREATE TRIGGER change AFTER INSERT OR UPDATE OR DELETE ON imports"
        " FOR EACH ROW EXECUTE FUNCTION nova_change('import', 'id')"
    )
