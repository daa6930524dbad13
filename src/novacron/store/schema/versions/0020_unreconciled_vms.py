"""VMs of which a node knows more than the database, because an older database was put back."""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"

STATEMENTS = (
    """
    CREATE TABLE unreconciled_vms (
        id            text        PRIMARY KEY,
        vm            text        NOT NULL,
        vm_name       text        NOT NULL,
        node          text        NOT NULL REFERENCES nodes ON UPDATE CASCADE ON DELETE CASCADE,
        contradiction text        NOT NULL,
        epoch         bigint      NOT NULL,
        claim         text        NOT NULL,
        reason        text        NOT NULL,
        description   jsonb,
        project       text        REFERENCES projects (name) ON UPDATE CASCADE ON DELETE SET NULL,
        revision      bigint      NOT NULL,
        created_at    timestamptz NOT NULL DEFAULT now(),
        UNIQUE (vm, node)
    )
    """,
    "CREATE INDEX unreconciled_vms_node ON unreconciled_vms (node)",
    "ALTER TABLE vms ADD COLUMN unreconciled text",
    # Nobody gives a VM away, whatever for, while it is not known where it is.
    """
    CREATE FUNCTION nova_unreconciled() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'VM % is unreconciled: its epoch stays as it is', OLD.id;
    END $$
    """,
    "CREATE TRIGGER unreconciled BEFORE UPDATE ON vms FOR EACH ROW WHEN"
    " (OLD.unreconciled IS NOT NULL AND NEW.unreconciled IS NOT NULL AND NEW.epoch <> OLD.epoch)"
    " EXECUTE FUNCTION nova_unreconciled()",
    "CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON unreconciled_vms"
    " FOR EACH ROW EXECUTE FUNCTION nova_set_revision()",
    "CREATE TRIGGER change AFTER INSERT OR UPDATE OR DELETE ON unreconciled_vms"
    " FOR EACH ROW EXECUTE FUNCTION nova_change('unreconciled-vm', 'id')",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
