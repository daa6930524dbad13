"""VMs that used more or less in the last hours than they usually do at that time of the day."""

from __future__ import annotations

from alembic import op

revision = "0069"
down_revision = "0068"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE vm_unusual_loads (vm text PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE,"
        " since timestamptz NOT NULL, hour timestamptz NOT NULL, used real NOT NULL, usual real NOT NULL,"
        " deviation real NOT NULL)"
    )
