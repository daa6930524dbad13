"""The database says which servers may start over it: those that know this version of its schema, or a later one.

A version that only adds leaves it as it is. One that takes something away, which servers of a version before it still
use, sets it: ``UPDATE schema_serves SET oldest = 'NNNN'``.
"""

from __future__ import annotations

from alembic import op

revision = "0067"
down_revision = "0066"

TABLE = """
CREATE TABLE schema_serves (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    oldest text NOT NULL CHECK (oldest SIMILAR TO '[0-9]{4}')
)
"""


def upgrade() -> None:
    op.execute(TABLE)
    op.execute("INSERT INTO schema_serves (oldest) VALUES ('0067')")
