"""Tickets for TCP ports of VMs."""

from __future__ import annotations

from alembic import op

revision = "0040"
down_revision = "0039"


def upgrade() -> None:
    op.execute("ALTER TABLE tickets ADD COLUMN port integer NOT NULL DEFAULT 0")
