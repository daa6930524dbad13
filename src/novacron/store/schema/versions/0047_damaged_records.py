"""Nodes that can't read all that they have written down of their VMs."""

from __future__ import annotations

from alembic import op

revision = "0047"
down_revision = "0046"


def upgrade() -> None:
    op.execute("ALTER TABLE node_leases ADD COLUMN record_damaged boolean NOT NULL DEFAULT false")
