"""IPv6 addresses of interfaces."""

from __future__ import annotations

from alembic import op

revision = "0041"
down_revision = "0040"


def upgrade() -> None:
    op.execute("ALTER TABLE nics ADD COLUMN address6 text, ADD UNIQUE (network, address6)")
