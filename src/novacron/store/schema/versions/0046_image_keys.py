"""The keys with which images are encrypted on nodes."""

from __future__ import annotations

from alembic import op

revision = "0046"
down_revision = "0045"


def upgrade() -> None:
    op.execute("ALTER TABLE image_owners ADD COLUMN encryption_key text NOT NULL DEFAULT ''")
    op.execute("CREATE INDEX image_owners_encryption_key ON image_owners (encryption_key) WHERE encryption_key <> ''")
