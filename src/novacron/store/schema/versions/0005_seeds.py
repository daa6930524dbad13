"""First-boot data of VMs: apart from them, for it may hold secrets and is not shown again."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute("CREATE TABLE vm_seeds (vm text PRIMARY KEY REFERENCES vms ON DELETE CASCADE, seed jsonb NOT NULL)")
