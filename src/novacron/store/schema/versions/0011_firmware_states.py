"""What firmware and TPM of a VM begin with."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE vm_firmware_states (vm text PRIMARY KEY REFERENCES vms ON DELETE CASCADE, state jsonb NOT NULL)"
    )
