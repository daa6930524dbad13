"""An object that moves to another project is gone for those who follow the project where it was."""

from __future__ import annotations

from alembic import op

revision = "0037"
down_revision = "0036"

CHANGE = """
CREATE OR REPLACE FUNCTION nova_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    was jsonb;
    now_is jsonb;
    moves boolean := false;
BEGIN
    IF TG_OP <> 'INSERT' THEN
        was := to_jsonb(OLD);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        now_is := to_jsonb(NEW);
    ELSIF (was ->> 'revision')::bigint > pg_current_xact_id()::text::bigint THEN
        RAISE EXCEPTION 'a later transaction has written this row' USING ERRCODE = 'serialization_failure';
    END IF;
    IF TG_OP = 'UPDATE' AND TG_ARGV[0] IN ('vm', 'volume', 'snapshot')
        AND was ->> 'project' <> now_is ->> 'project' THEN
        -- Not where the project itself has another name.
        moves := EXISTS (SELECT FROM projects WHERE name = was ->> 'project');
    END IF;
    IF TG_OP = 'DELETE' OR moves OR (TG_OP = 'UPDATE' AND was ->> TG_ARGV[1] <> now_is ->> TG_ARGV[1]) THEN
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
    op.execute(CHANGE)
