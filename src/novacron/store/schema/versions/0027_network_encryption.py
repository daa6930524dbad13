"""Whether all traffic of networks between nodes has to be encrypted: a setting of the fleet, and of each network."""

from __future__ import annotations

from alembic import op

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    op.execute("CREATE TABLE network_encryption (id int PRIMARY KEY DEFAULT 1 CHECK (id = 1), always bool NOT NULL)")
    op.execute("INSERT INTO network_encryption (always) VALUES (false)")
    op.execute("ALTER TABLE networks ADD COLUMN encryption_required bool NOT NULL DEFAULT false")
