"""How drills went that an installation runs on itself."""

from __future__ import annotations

from alembic import op

revision = "0053"
down_revision = "0052"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE drills (id text PRIMARY KEY, drill text NOT NULL, verdict text NOT NULL,"
        " started_at timestamptz NOT NULL, ended_at timestamptz NOT NULL, recorded_by text NOT NULL,"
        " version text NOT NULL, machine text NOT NULL, measured jsonb NOT NULL, promised jsonb NOT NULL,"
        " steps jsonb NOT NULL, error text NOT NULL, revision bigint NOT NULL,"
        " created_at timestamptz NOT NULL DEFAULT now())"
    )
    op.execute("CREATE INDEX drills_newest ON drills (drill, ended_at DESC)")
    op.execute(
        "CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON drills FOR EACH ROW EXECUTE FUNCTION nova_set_revision()"
    )
    op.execute(
        "CREATE TRIGGER change AFTER INSERT OR UPDATE OR DELETE ON drills"
        " FOR EACH ROW EXECUTE FUNCTION nova_change('drill', 'id')"
    )
