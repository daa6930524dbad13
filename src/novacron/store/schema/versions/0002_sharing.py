"""Budgets of links, and each migration's share."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = (
    "ALTER TABLE migrations ADD COLUMN weight integer NOT NULL DEFAULT 1, ADD COLUMN rate_limit_bytes_per_s bigint,"
    " ADD COLUMN rate_bytes_per_s bigint, ADD COLUMN waits_for text",
    """
    CREATE TABLE links (
        id         text        PRIMARY KEY,
        sites      text[]      NOT NULL,
        spec       jsonb       NOT NULL,
        revision   bigint      NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON links FOR EACH ROW EXECUTE FUNCTION nova_set_revision()",
    "CREATE TRIGGER change AFTER INSERT OR UPDATE OR DELETE ON links"
    " FOR EACH ROW EXECUTE FUNCTION nova_change('link', 'id')",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
