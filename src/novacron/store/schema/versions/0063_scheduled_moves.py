"""Moves of VMs that wait for their time."""

from __future__ import annotations

from alembic import op

revision = "0063"
down_revision = "0062"


def upgrade() -> None:
    op.execute("ALTER TABLE vms ADD COLUMN scheduled_move jsonb")
    op.execute("CREATE INDEX vms_scheduled_move ON vms (id) WHERE scheduled_move IS NOT NULL")
