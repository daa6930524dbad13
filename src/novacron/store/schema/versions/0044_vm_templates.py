"""Flavors and templates: what new VMs begin with. Those without a project are for all of them."""

from __future__ import annotations

from alembic import op

revision = "0044"
down_revision = "0043"

KINDS = {"flavors": "flavor", "templates": "template"}


def upgrade() -> None:
    for table, kind in KINDS.items():
        op.execute(
            f"CREATE TABLE {table} (name text PRIMARY KEY, spec jsonb NOT NULL,"
            " project text REFERENCES projects (name) ON UPDATE CASCADE,"
            " display_name text NOT NULL DEFAULT '', description text NOT NULL DEFAULT '',"
            " tags jsonb NOT NULL DEFAULT '[]', revision bigint NOT NULL,"
            " created_at timestamptz NOT NULL DEFAULT now())"
        )
        op.execute(f"CREATE INDEX {table}_project ON {table} (project)")
        op.execute(
            f"CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION nova_set_revision()"
        )
        op.execute(
            f"CREATE TRIGGER change AFTER INSERT OR UPDATE OR DELETE ON {table}"
            f" FOR EACH ROW EXECUTE FUNCTION nova_change('{kind}', 'name')"
        )
