"""Tickets for consoles: only hashes are kept."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE tickets (hash bytea PRIMARY KEY, vm text NOT NULL, kind text NOT NULL, actor text NOT NULL,"
        " expires_at timestamptz NOT NULL)"
    )
