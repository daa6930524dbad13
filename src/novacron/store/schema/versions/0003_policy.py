"""What a migration does with a guest that writes too fast."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("ALTER TABLE migrations ADD COLUMN policy text NOT NULL DEFAULT 'throttle'")
