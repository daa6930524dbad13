"""What is known of nodes that fall silent, which moves nobody asked for, and drains."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.execute(
        "ALTER TABLE node_leases"
        " ADD COLUMN generation bigint NOT NULL DEFAULT 0,"  # grows when the node's VMs are given to others
        " ADD COLUMN hears_until timestamptz, ADD COLUMN steady_since timestamptz,"
        " ADD COLUMN voters text[] NOT NULL DEFAULT '{}', ADD COLUMN fenced_at timestamptz"
    )
    op.execute(
        "CREATE TABLE node_signs ("
        " node text NOT NULL REFERENCES nodes ON DELETE CASCADE,"
        " seen_by text NOT NULL REFERENCES nodes ON DELETE CASCADE,"
        " seen_at timestamptz NOT NULL, silent boolean NOT NULL, PRIMARY KEY (node, seen_by))"
    )
    op.execute("CREATE INDEX vms_ha ON vms (node) WHERE (spec ->> 'ha')::bool")
    op.execute("CREATE INDEX migrations_vm ON migrations (vm, finished_at)")
    op.execute("ALTER TABLE migrations ADD COLUMN cause text NOT NULL DEFAULT 'request'")
    op.execute(
        "CREATE TABLE drains ("
        " id text PRIMARY KEY, node text NOT NULL, policy text NOT NULL, actor text NOT NULL, phase text NOT NULL,"
        " total int NOT NULL DEFAULT 0, moved jsonb NOT NULL DEFAULT '[]', moving jsonb NOT NULL DEFAULT '[]',"
        " stays jsonb NOT NULL DEFAULT '[]', given_up jsonb NOT NULL DEFAULT '[]', estimate_s double precision,"
        " revision bigint NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), finished_at timestamptz)"
    )
    op.execute("CREATE UNIQUE INDEX drains_one_active ON drains (node) WHERE finished_at IS NULL")
    op.execute("CREATE INDEX drains_node ON drains (node, created_at)")
    op.execute(
        "CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON drains FOR EACH ROW EXECUTE FUNCTION nova_set_revision()"
    )
    op.execute(
        "CREATE TRIGGER change AFTER INSERT OR UPDATE OR DELETE ON drains"
        " FOR EACH ROW EXECUTE FUNCTION nova_change('drain', 'id')"
    )
    op.execute(
        "CREATE TABLE vm_loads (vm text PRIMARY KEY REFERENCES vms ON DELETE CASCADE, cpus double precision NOT NULL,"
        " measured_at timestamptz NOT NULL)"
    )
    op.execute(
        "CREATE TABLE rebalancing (id int PRIMARY KEY DEFAULT 1 CHECK (id = 1), settings jsonb NOT NULL,"
        " rounds int NOT NULL DEFAULT 0, decision jsonb, decided_at timestamptz)"
    )
    op.execute("INSERT INTO rebalancing (settings) VALUES ('{}')")
    op.execute(
        "CREATE TABLE volume_leftovers (volume text NOT NULL, pool text NOT NULL,"
        " node text NOT NULL REFERENCES nodes ON DELETE CASCADE, PRIMARY KEY (node, volume))"
    )
    op.execute("ALTER TABLE volumes ADD COLUMN image text")
