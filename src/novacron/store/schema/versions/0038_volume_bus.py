"""Volumes on other buses than SCSI, and disks that were made with a VM and are deleted with it."""

from __future__ import annotations

from alembic import op

revision = "0038"
down_revision = "0037"


def upgrade() -> None:
    op.execute("ALTER TABLE volumes ADD COLUMN bus text NOT NULL DEFAULT 'scsi'")
    op.execute("ALTER TABLE volumes ADD COLUMN with_vm boolean NOT NULL DEFAULT false")
