"""The audit log as a hash chain: links, signed heads, the keys that sign them, and how far the exports are.

Records that are there already are chained first, in their order; a head is signed when that is done.
"""

from __future__ import annotations

from alembic import op

revision = "0029"
down_revision = "0028"

PERSONAL = "ARRAY['actor', 'address', 'path', 'object', 'name', 'detail', 'txid']"

STATEMENTS = (
    "ALTER TABLE audit ADD COLUMN txid xid8 NOT NULL DEFAULT '0'",  # constant, so that no row is rewritten
    "ALTER TABLE audit ALTER COLUMN txid SET DEFAULT pg_current_xact_id()",
    "CREATE INDEX audit_txid ON audit (txid, id)",
    "CREATE TABLE audit_links (seq bigint PRIMARY KEY, record bigint NOT NULL UNIQUE, previous bytea NOT NULL,"
    " hash bytea NOT NULL, salt bytea, erased jsonb, CHECK ((salt IS NULL) <> (erased IS NULL)))",
    # One row: where the chain begins and ends, and the last record, in the order of the change feed, that it has.
    "CREATE TABLE audit_chain (one boolean PRIMARY KEY DEFAULT true CHECK (one), id text NOT NULL,"
    " start_seq bigint NOT NULL DEFAULT 0, start_hash bytea NOT NULL, seq bigint NOT NULL DEFAULT 0,"
    " hash bytea NOT NULL, txid xid8 NOT NULL DEFAULT '0', record bigint NOT NULL DEFAULT 0)",
    "INSERT INTO audit_chain (id, start_hash, hash) SELECT id, hash, hash FROM (SELECT id,"
    " sha256(convert_to(E'novacron audit chain 1\\n' || id, 'UTF8')) AS hash"
    " FROM (SELECT 'chain-' || gen_random_uuid() AS id) AS named) AS begun",
    "CREATE TABLE audit_heads (seq bigint PRIMARY KEY, hash bytea NOT NULL, at timestamptz NOT NULL, key text NOT NULL,"
    " signature bytea NOT NULL)",
    "CREATE TABLE audit_keys (id text PRIMARY KEY, public_key bytea NOT NULL, server text NOT NULL,"
    " created_at timestamptz NOT NULL DEFAULT now())",
    "CREATE TABLE audit_sinks (name text PRIMARY KEY, seq bigint NOT NULL)",
    f"""CREATE OR REPLACE FUNCTION nova_audit_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.at < now() - interval '90 days' THEN
        RETURN OLD;
    END IF;
    IF TG_OP = 'UPDATE' AND current_setting('novacron.audit', true) = 'erase'
       AND to_jsonb(OLD) - {PERSONAL} = to_jsonb(NEW) - {PERSONAL} THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'what is in the audit log stays as it is for 90 days';
END $$""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
