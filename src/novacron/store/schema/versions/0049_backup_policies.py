"""Policies that back VMs up, and what backups each VM has."""

from __future__ import annotations

from alembic import op

revision = "0049"
down_revision = "0048"

NOTHING = '{"policies": [], "newest_at": null, "verified_at": null, "late_at": null}'


def upgrade() -> None:
    op.execute(
        "CREATE TABLE backup_policies (id text PRIMARY KEY, name text NOT NULL, spec jsonb NOT NULL,"
        " repository text NOT NULL REFERENCES backup_repositories (id), repository_name text NOT NULL,"
        " promise_s integer NOT NULL, effective_from timestamptz NOT NULL DEFAULT now(), run_at timestamptz,"
        " problems jsonb NOT NULL DEFAULT '[]', problem_count integer NOT NULL DEFAULT 0,"
        " project text NOT NULL DEFAULT 'default' REFERENCES projects (name) ON UPDATE CASCADE,"
        " revision bigint NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), UNIQUE (project, name))"
    )
    op.execute("CREATE INDEX backup_policies_repository ON backup_policies (repository)")
    op.execute(
        "CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON backup_policies"
        " FOR EACH ROW EXECUTE FUNCTION nova_set_revision()"
    )
    op.execute(
        "CREATE TRIGGER change AFTER INSERT OR UPDATE OR DELETE ON backup_policies"
        " FOR EACH ROW EXECUTE FUNCTION nova_change('backup-policy', 'id')"
    )
    op.execute("ALTER TABLE backups ADD COLUMN policy text NOT NULL DEFAULT '', ADD COLUMN verify_asked_at timestamptz")
    op.execute("CREATE INDEX backups_policy ON backups (policy, vm, created_at) WHERE policy <> ''")
    op.execute("CREATE INDEX backups_failed ON backups (policy, vm, created_at) WHERE phase = 'failed'")
    op.execute(
        "CREATE INDEX backups_to_verify ON backups (policy, node, verified_at NULLS FIRST, created_at DESC)"
        " WHERE phase = 'kept'"
    )
    op.execute("CREATE INDEX backups_vm ON backups (vm, repository, created_at)")
    op.execute(f"ALTER TABLE vms ADD COLUMN backups jsonb NOT NULL DEFAULT '{NOTHING}'")
