"""When the secret of a second factor was sealed."""

from __future__ import annotations

from alembic import op

revision = "0042"
down_revision = "0041"


def upgrade() -> None:
    op.execute("ALTER TABLE second_factors ADD COLUMN sealed_at timestamptz NOT NULL DEFAULT now()")
