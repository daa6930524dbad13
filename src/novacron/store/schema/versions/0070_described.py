"""Backups keep what people wrote about the VM: display name, description and tags."""

from __future__ import annotations

from alembic import op

revision = "0070"
down_revision = "0069"


def upgrade() -> None:
    op.execute("ALTER TABLE backups ADD COLUMN described jsonb NOT NULL DEFAULT '{}'")
