"""VMs that have CPUs or huge pages of their node for themselves, which placement counts, are found without a scan."""

from __future__ import annotations

from alembic import op

revision = "0068"
down_revision = "0067"


def upgrade() -> None:
    op.execute(
        "CREATE INDEX vms_own_parts ON vms (node)"
        " WHERE (spec ->> 'cpu_policy' = 'dedicated' OR spec ->> 'hugepages' IN ('2M', '1G'))"
    )
