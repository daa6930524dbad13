"""What is written to a row comes in the feed's order, or is written again: a transaction that waited for a row while
a later one wrote it does not write it, too."""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"

SET_REVISION = """
CREATE OR REPLACE FUNCTION nova_set_revision() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    own bigint := pg_current_xact_id()::text::bigint;
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.revision > own THEN
        RAISE EXCEPTION 'a later transaction has written this row' USING ERRCODE = 'serialization_failure';
    END IF;
    NEW.revision := own;
    RETURN NEW;
END $$
"""

CHANGE = """
CREATE OR REPLACE FUNCTION nova_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    was jsonb;
    now_is jsonb;
BEGIN
    IF TG_OP <> 'INSERT' THEN
        was := to_jsonb(OLD);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        now_is := to_jsonb(NEW);
    ELSIF (was ->> 'revision')::bigint > pg_current_xact_id()::text::bigint THEN
        RAISE EXCEPTION 'a later transaction has written this row' USING ERRCODE = 'serialization_failure';
    END IF;
    IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND was ->> TG_ARGV[1] <> now_is ->> TG_ARGV[1]) THEN
        INSERT INTO changes (kind, key, project) VALUES (TG_ARGV[0], was ->> TG_ARGV[1], was ->> 'project');
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO changes (kind, key, body, project)
        VALUES (TG_ARGV[0], now_is ->> TG_ARGV[1], now_is, now_is ->> 'project');
    END IF;
    PERFORM pg_notify('nova_feed', '');
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    op.execute(SET_REVISION)
    op.execute(CHANGE)
