"""How far each server has counted in the database: what others remember of it tells that the database is older."""

from __future__ import annotations

from alembic import op

revision = "0031"
down_revision = "0030"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE database_marks ("
        " server text PRIMARY KEY,"
        " number bigint NOT NULL,"
        " ended boolean NOT NULL DEFAULT false"
        ")"
    )
