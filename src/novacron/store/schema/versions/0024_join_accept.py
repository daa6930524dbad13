"""Join tokens that accept their host as a node."""

from __future__ import annotations

from alembic import op

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    op.execute("ALTER TABLE join_tokens ADD COLUMN accept boolean NOT NULL DEFAULT false")
