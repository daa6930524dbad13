"""Networks, interfaces of VMs, security groups, and ways in from outside; nodes whose name or host changes."""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE networks (name text PRIMARY KEY, spec jsonb NOT NULL, number int NOT NULL UNIQUE,"
        " mtu int NOT NULL, gateway text REFERENCES nodes ON UPDATE CASCADE ON DELETE SET NULL,"
        " revision bigint NOT NULL, created_at timestamptz NOT NULL DEFAULT now())"
    )
    op.execute(
        "CREATE TABLE nics (vm text NOT NULL REFERENCES vms ON DELETE CASCADE, number int NOT NULL,"
        " network text NOT NULL REFERENCES networks, address text, mac text NOT NULL, PRIMARY KEY (vm, number),"
        " UNIQUE (network, address), UNIQUE (network, mac))"
    )
    op.execute(
        "CREATE TABLE security_groups (name text PRIMARY KEY, rules jsonb NOT NULL, revision bigint NOT NULL,"
        " created_at timestamptz NOT NULL DEFAULT now())"
    )
    op.execute(
        "CREATE TABLE floating_addresses (address text PRIMARY KEY, vm text REFERENCES vms ON DELETE SET NULL,"
        " vm_name text, network text REFERENCES networks, revision bigint NOT NULL,"
        " created_at timestamptz NOT NULL DEFAULT now())"
    )
    op.execute(
        "CREATE TABLE forwards (id text PRIMARY KEY, network text NOT NULL REFERENCES networks,"
        " address text REFERENCES floating_addresses, protocol text NOT NULL, port int NOT NULL,"
        " vm text NOT NULL REFERENCES vms ON DELETE CASCADE, vm_name text NOT NULL, vm_port int NOT NULL,"
        " revision bigint NOT NULL, created_at timestamptz NOT NULL DEFAULT now(),"
        " UNIQUE NULLS NOT DISTINCT (address, protocol, port))"
    )
    op.execute(
        "ALTER TABLE nodes ADD COLUMN number int GENERATED ALWAYS AS IDENTITY,"
        " ADD COLUMN key_hash text, ADD COLUMN was text UNIQUE"
    )
    for table, column, then in (
        ("vms", "node", ""),
        ("node_leases", "node", " ON DELETE CASCADE"),
        ("node_signs", "node", " ON DELETE CASCADE"),
        ("node_signs", "seen_by", " ON DELETE CASCADE"),
        ("volume_leftovers", "node", " ON DELETE CASCADE"),
    ):
        op.execute(
            f"ALTER TABLE {table} DROP CONSTRAINT {table}_{column}_fkey, ADD CONSTRAINT {table}_{column}_fkey"
            f" FOREIGN KEY ({column}) REFERENCES nodes ON UPDATE CASCADE{then}"
        )
    op.execute(
        "CREATE OR REPLACE FUNCTION nova_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE'"
        " AND to_jsonb(OLD) ->> TG_ARGV[1] <> to_jsonb(NEW) ->> TG_ARGV[1]) THEN"
        " INSERT INTO changes (kind, key) VALUES (TG_ARGV[0], to_jsonb(OLD) ->> TG_ARGV[1]); END IF;"
        " IF TG_OP <> 'DELETE' THEN INSERT INTO changes (kind, key, body)"
        " VALUES (TG_ARGV[0], to_jsonb(NEW) ->> TG_ARGV[1], to_jsonb(NEW)); END IF;"
        " PERFORM pg_notify('nova_feed', ''); RETURN NULL; END $$"
    )
    for table, kind, key in (
        ("networks", "network", "name"),
        ("security_groups", "security-group", "name"),
        ("floating_addresses", "floating-address", "address"),
        ("forwards", "forward", "id"),
    ):
        op.execute(
            f"CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION nova_set_revision()"
        )
        op.execute(
            f"CREATE TRIGGER change AFTER INSERT OR UPDATE OR DELETE ON {table}"
            f" FOR EACH ROW EXECUTE FUNCTION nova_change('{kind}', '{key}')"
        )
