"""What snapshots do not contain, and what their memory fits. NULL: not known, they are older."""

from __future__ import annotations

from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.execute(
        "ALTER TABLE snapshots ADD COLUMN excluded_volumes jsonb, ADD COLUMN layout jsonb,"
        " ADD COLUMN starts_vm boolean NOT NULL DEFAULT false"
    )
