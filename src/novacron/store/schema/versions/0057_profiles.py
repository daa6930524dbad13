"""What VMs usually use at each hour of the day."""

from __future__ import annotations

from alembic import op

revision = "0057"
down_revision = "0056"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE vm_profiles (vm text PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE, day date NOT NULL,"
        " means real[] NOT NULL, variances real[] NOT NULL)"
    )
