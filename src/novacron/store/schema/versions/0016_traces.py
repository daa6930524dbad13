"""To which trace belongs what was last asked of a VM or a volume, and what a migration, an import or an export does
(W3C Trace Context: traceparent)."""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    for table in ("vms", "migrations", "volumes", "imports", "exports"):
        op.execute(f"ALTER TABLE {table} ADD COLUMN trace text NOT NULL DEFAULT ''")
