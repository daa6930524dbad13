"""Keys of projects, wrapped by the platform key, and whether what projects create is encrypted with them."""

from __future__ import annotations

from alembic import op

revision = "0032"
down_revision = "0031"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE project_keys (id text PRIMARY KEY, project_id text NOT NULL, wrapped bytea, wrapped_by text,"
        " created_at timestamptz NOT NULL DEFAULT now(), erased_at timestamptz,"
        " CHECK ((wrapped IS NULL) = (erased_at IS NOT NULL)))"
    )
    op.execute("ALTER TABLE projects ADD COLUMN encryption boolean NOT NULL DEFAULT false")
    op.execute("ALTER TABLE projects ADD COLUMN encryption_key text REFERENCES project_keys (id)")
    op.execute("ALTER TABLE volumes ADD COLUMN encryption_key text NOT NULL DEFAULT ''")
