"""The keys of projects with which backups are encrypted."""

from __future__ import annotations

from alembic import op

revision = "0065"
down_revision = "0064"


def upgrade() -> None:
    op.execute("ALTER TABLE backups ADD COLUMN encryption_key text NOT NULL DEFAULT ''")
    op.execute("CREATE INDEX backups_encryption_key ON backups (encryption_key) WHERE encryption_key <> ''")
