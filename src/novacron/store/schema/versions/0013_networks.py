"""Networks, interfaces of VMs, security groups, and ways in from outside."""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute(
        "CREATE TABLE networks (name text PRIMARY KEY, spec jsonb NOT NULL, number int NOT NULL UNIQUE,"
        " mtu int NOT NULL, gateway text REFERENCES nodes ON DELETE SET NULL, revision bigint NOT NULL,"
        " created_at timestamptz NOT NULL DEFAULT now())"
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
    op.execute("ALTER TABLE nodes ADD COLUMN number int GENERATED ALWAYS AS IDENTITY")
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
