"""Proofs of backups, with VMs that are made for them and pictures of their screens; when repositories are pruned."""

from __future__ import annotations

from alembic import op

revision = "0050"
down_revision = "0049"


def upgrade() -> None:
    op.execute("ALTER TABLE backups ADD COLUMN proof jsonb")
    op.execute(
        "CREATE INDEX backups_proof ON backups (node) WHERE proof ->> 'phase' IN ('waiting', 'restoring', 'starting')"
    )
    op.execute(
        "CREATE TABLE backup_pictures (backup text PRIMARY KEY REFERENCES backups (id) ON DELETE CASCADE,"
        " png bytea NOT NULL)"
    )
    op.execute("ALTER TABLE vms ADD COLUMN proof_of text NOT NULL DEFAULT ''")
    op.execute(
        "ALTER TABLE backup_repositories ADD COLUMN prune_days integer DEFAULT 7,"
        " ADD COLUMN prune_asked_at timestamptz, ADD COLUMN prunes jsonb NOT NULL DEFAULT '[]'"
    )
    op.execute("CREATE INDEX vms_proof_of ON vms (proof_of) WHERE proof_of <> ''")
    op.execute('UPDATE vms SET backups = backups || \'{"proved_at": null, "proof_failed": false}\'')
    op.execute(
        "ALTER TABLE vms ALTER COLUMN backups SET DEFAULT"
        ' \'{"policies": [], "newest_at": null, "verified_at": null, "late_at": null, "proved_at": null,'
        ' "proof_failed": false}\''
    )
