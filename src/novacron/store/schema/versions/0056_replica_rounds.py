"""How it was known what the last round of a replica had to bring."""

from __future__ import annotations

from alembic import op

revision = "0056"
down_revision = "0055"


def upgrade() -> None:
    op.execute("ALTER TABLE replicas ADD COLUMN round_kind text, ADD COLUMN round_reason text NOT NULL DEFAULT ''")
