"""Which ports of gateways may be forwarded, for each site that does not have the default range."""

from __future__ import annotations

from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.execute("CREATE TABLE site_settings (site text PRIMARY KEY, forward_ports text NOT NULL)")
