"""What backups of a project there are is counted for its quota."""

from __future__ import annotations

from alembic import op

revision = "0059"
down_revision = "0058"


def upgrade() -> None:
    op.execute("CREATE INDEX backups_project ON backups (project)")
