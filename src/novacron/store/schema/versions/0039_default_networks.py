"""Networks for VMs that name none."""

from __future__ import annotations

from alembic import op

revision = "0039"
down_revision = "0038"


def upgrade() -> None:
    op.execute(
        "ALTER TABLE projects ADD COLUMN default_network text REFERENCES networks ON UPDATE CASCADE ON DELETE SET NULL"
    )
