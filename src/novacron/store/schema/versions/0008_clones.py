"""Clones of VMs."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute("ALTER TABLE vms ADD COLUMN clone_of jsonb")
    op.execute("CREATE INDEX vms_clone_source ON vms ((clone_of ->> 'source')) WHERE clone_of IS NOT NULL")
