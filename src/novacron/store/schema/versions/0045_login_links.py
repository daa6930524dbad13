"""Links that log a user in to the web UI, once."""

from __future__ import annotations

from alembic import op

revision = "0045"
down_revision = "0044"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE login_links (hash bytea PRIMARY KEY,"
        " token text NOT NULL UNIQUE REFERENCES tokens ON DELETE CASCADE, expires_at timestamptz NOT NULL)"
    )
