"""From which start of which host a node was heard last."""

from __future__ import annotations

from alembic import op

revision = "0058"
down_revision = "0057"


def upgrade() -> None:
    op.execute("ALTER TABLE node_leases ADD COLUMN boot text NOT NULL DEFAULT ''")
