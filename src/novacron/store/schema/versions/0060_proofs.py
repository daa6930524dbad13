"""Nodes prove what they were told. Those that were given no proofs yet are believed without, for a while."""

from __future__ import annotations

from alembic import op

revision = "0060"
down_revision = "0059"


def upgrade() -> None:
    op.execute("ALTER TABLE node_leases ADD COLUMN unproven_until timestamptz")
    op.execute("UPDATE node_leases SET unproven_until = now() + interval '30 days'")
    op.execute("ALTER TABLE unreconciled_vms ADD COLUMN proven boolean NOT NULL DEFAULT true")
    op.execute("ALTER TABLE database_marks ADD COLUMN superseded boolean NOT NULL DEFAULT false")
