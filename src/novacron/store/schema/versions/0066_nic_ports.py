"""VMs have ports for interfaces that come while they run: from their creation on, or when their machine type is chosen
anew, so that the memory of their snapshots keeps fitting."""

from __future__ import annotations

from alembic import op

revision = "0066"
down_revision = "0065"


def upgrade() -> None:
    op.execute("ALTER TABLE vms ADD COLUMN nic_ports smallint NOT NULL DEFAULT 0")
    op.execute("ALTER TABLE vms ALTER COLUMN nic_ports SET DEFAULT 8")  # also for those that older servers create
