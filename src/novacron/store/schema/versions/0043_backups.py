"""Backups of VMs, and the repositories in which they are kept."""

from __future__ import annotations

from alembic import op

revision = "0043"
down_revision = "0042"

PROJECT = "project text NOT NULL DEFAULT 'default' REFERENCES projects (name) ON UPDATE CASCADE"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE backup_repositories (id text PRIMARY KEY, name text NOT NULL,"
        f" key text NOT NULL REFERENCES project_keys (id), {PROJECT},"
        " revision bigint NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), UNIQUE (project, name))"
    )
    op.execute(
        "CREATE TABLE backups (id text PRIMARY KEY, vm text NOT NULL, vm_name text NOT NULL,"
        " repository text NOT NULL REFERENCES backup_repositories (id), repository_name text NOT NULL,"
        " node text NOT NULL, spec jsonb NOT NULL, phase text NOT NULL, result jsonb NOT NULL DEFAULT '{}',"
        " excluded_volumes jsonb NOT NULL DEFAULT '[]', verified_at timestamptz, error text NOT NULL DEFAULT '',"
        f" reason_code text NOT NULL DEFAULT '', trace text NOT NULL DEFAULT '', {PROJECT},"
        " revision bigint NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), finished_at timestamptz)"
    )
    op.execute("CREATE INDEX backups_working ON backups (node) WHERE phase IN ('making', 'verifying', 'deleting')")
    op.execute("CREATE INDEX backups_repository ON backups (repository)")
    for table, kind in (("backup_repositories", "backup-repository"), ("backups", "backup")):
        op.execute(
            f"CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION nova_set_revision()"
        )
        op.execute(
            f"CREATE TRIGGER change AFTER INSERT OR UPDATE OR DELETE ON {table}"
            f" FOR EACH ROW EXECUTE FUNCTION nova_change('{kind}', 'id')"
        )
