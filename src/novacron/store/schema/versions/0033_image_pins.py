"""Which image a VM is made of: a name means one digest, and a VM keeps the one that it was created with."""

from __future__ import annotations

from alembic import op

revision = "0033"
down_revision = "0032"


def upgrade() -> None:
    op.execute("ALTER TABLE image_digests ADD COLUMN reported boolean NOT NULL DEFAULT false")
    op.execute("ALTER TABLE vms ADD COLUMN image_digest text")
