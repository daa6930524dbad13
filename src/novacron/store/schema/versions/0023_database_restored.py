"""When it was found that the database is older than what nodes know: at most one row."""

from __future__ import annotations

from alembic import op

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE database_restored"
        " (single boolean PRIMARY KEY DEFAULT true CHECK (single), found_at timestamptz NOT NULL)"
    )
