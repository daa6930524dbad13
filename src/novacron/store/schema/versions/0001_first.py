"""The first tables: VMs, nodes, migrations, events, tokens, and the change feed."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = """
CREATE TABLE changes (
    txid  xid8        NOT NULL DEFAULT pg_current_xact_id(),
    seq   bigint      GENERATED ALWAYS AS IDENTITY,
    kind  text        NOT NULL,
    key   text        NOT NULL,
    body  jsonb,
    at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (txid, seq)
);
CREATE INDEX changes_at ON changes USING brin (at);
-- The newest transaction whose changes were forgotten.
CREATE SEQUENCE feed_pruned MINVALUE 0 START 0;

-- revision: the transaction that wrote the row last. Transactions become visible to the feed in this order.
CREATE FUNCTION nova_set_revision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.revision := pg_current_xact_id()::text::bigint;
    RETURN NEW;
END $$;

-- nova_change(kind, key column): every write of a row goes to the feed, whoever makes it.
CREATE FUNCTION nova_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO changes (kind, key) VALUES (TG_ARGV[0], to_jsonb(OLD) ->> TG_ARGV[1]);
    ELSE
        INSERT INTO changes (kind, key, body)
        VALUES (TG_ARGV[0], to_jsonb(NEW) ->> TG_ARGV[1], to_jsonb(NEW));
    END IF;
    PERFORM pg_notify('nova_feed', '');
    RETURN NULL;
END $$;

CREATE TABLE nodes (
    name       text        PRIMARY KEY,
    spec       jsonb       NOT NULL,
    status     jsonb       NOT NULL,
    revision   bigint      NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Heartbeats are many and small: they live apart from the nodes and are not in the feed.
CREATE TABLE node_leases (
    node       text        PRIMARY KEY REFERENCES nodes ON DELETE CASCADE,
    renewed_at timestamptz NOT NULL
);

CREATE TABLE vms (
    id         text        PRIMARY KEY,
    name       text        NOT NULL UNIQUE,
    spec       jsonb       NOT NULL,
    status     jsonb       NOT NULL,
    node       text        REFERENCES nodes,
    epoch      bigint      NOT NULL DEFAULT 0,
    migration  text,
    deleting   boolean     NOT NULL DEFAULT false,
    revision   bigint      NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((node IS NULL) = (epoch = 0))
);
CREATE INDEX vms_node ON vms (node);
CREATE INDEX vms_unplaced ON vms (created_at) WHERE node IS NULL;

-- What was deleted, and at which epoch: a node that was away learns that its remains may go.
CREATE TABLE vm_tombstones (
    vm         text        PRIMARY KEY,
    epoch      bigint      NOT NULL,
    deleted_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE migrations (
    id          text        PRIMARY KEY,
    vm          text        NOT NULL,
    vm_name     text        NOT NULL,
    kind        text        NOT NULL,
    source      text        NOT NULL,
    target      text        NOT NULL,
    epoch       bigint      NOT NULL,
    phase       text        NOT NULL,
    source_vote boolean     NOT NULL DEFAULT false,
    target_vote boolean     NOT NULL DEFAULT false,
    endpoint    text,
    progress    jsonb       NOT NULL,
    error       text,
    revision    bigint      NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    started_at  timestamptz,
    moved_at    timestamptz,
    finished_at timestamptz,
    CHECK (source <> target)
);
CREATE UNIQUE INDEX migrations_one_active ON migrations (vm) WHERE finished_at IS NULL;
CREATE INDEX migrations_active ON migrations (created_at) WHERE finished_at IS NULL;
CREATE INDEX migrations_created ON migrations (created_at);

CREATE TABLE events (
    id       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT now(),
    kind     text        NOT NULL,
    object   text        NOT NULL,
    name     text        NOT NULL,
    reason   text        NOT NULL,
    message  text        NOT NULL,
    actor    text        NOT NULL,
    revision bigint      NOT NULL
);
CREATE INDEX events_at ON events (at);
CREATE INDEX events_object ON events (object, at);

CREATE TABLE tokens (
    id         text        PRIMARY KEY,
    name       text        NOT NULL,
    hash       text        NOT NULL UNIQUE,
    revoked    boolean     NOT NULL DEFAULT false,
    revision   bigint      NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE join_tokens (
    hash       bytea       PRIMARY KEY,
    node       text,
    expires_at timestamptz NOT NULL,
    used_at    timestamptz
);

CREATE TABLE idempotency (
    token      text        NOT NULL,
    key        text        NOT NULL,
    request    bytea       NOT NULL,
    status     int,
    body       bytea,
    headers    jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (token, key)
);
CREATE INDEX idempotency_created ON idempotency (created_at);
"""

FED = {
    "nodes": ("node", "name"),
    "vms": ("vm", "id"),
    "migrations": ("migration", "id"),
    "events": ("event", "id"),
    "tokens": ("token", "id"),
}


def _statements() -> list[str]:
    """Split at the semicolons that end a line outside a function's body."""
    found, current, inside = [], "", False
    for line in STATEMENTS.splitlines(keepends=True):
        current += line
        if "$$" in line:
            inside = not inside
        if not inside and line.rstrip().endswith(";"):
            found.append(current)
            current = ""
    return found


def upgrade() -> None:
    for statement in _statements():
        op.execute(statement)
    for table, (kind, key) in FED.items():
        op.execute(
            f"CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION nova_set_revision()"
        )
        op.execute(
            f"CREATE TRIGGER change AFTER INSERT OR UPDATE OR DELETE ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION nova_change('{kind}', '{key}')"
        )
