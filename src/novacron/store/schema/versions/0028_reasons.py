"""Why objects are not as they were asked to be, and time limits of drains."""

from __future__ import annotations

from alembic import op

revision = "0028"
down_revision = "0027"

WITH_ERROR = ("volumes", "imports", "exports", "snapshots")
WITHOUT_ERROR = ("networks", "forwards", "floating_addresses", "drains")

EVENTS_PER_MINUTE_MAX = 5
"""As before; by now it counts for what rebalancing does, too."""

SERIES = f"""
CREATE OR REPLACE FUNCTION nova_event_series() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    earlier bigint;
    own bigint := pg_current_xact_id()::text::bigint;
BEGIN
    IF NOT (NEW.actor IN ('system', 'rebalancing') OR NEW.actor LIKE 'drain of %') THEN
        RETURN NEW;
    END IF;
    NEW.last_at := NEW.at;
    IF (SELECT count(*) FROM (
            SELECT FROM events WHERE object = NEW.object AND at > clock_timestamp() - interval '60 seconds'
            AND last_at IS NOT NULL LIMIT {EVENTS_PER_MINUTE_MAX}
        ) lately) < {EVENTS_PER_MINUTE_MAX} THEN
        RETURN NEW;
    END IF;
    SELECT id INTO earlier FROM events
    WHERE object = NEW.object AND at > clock_timestamp() - interval '60 seconds'
    AND last_at IS NOT NULL AND kind = NEW.kind AND reason = NEW.reason AND revision <= own
    ORDER BY at DESC, id DESC LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF earlier IS NULL THEN
        RETURN NEW;
    END IF;
    UPDATE events SET count = count + 1, last_at = clock_timestamp(), message = NEW.message WHERE id = earlier;
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    op.execute(SERIES)
    for table in (*WITH_ERROR, *WITHOUT_ERROR):
        op.execute(f"ALTER TABLE {table} ADD COLUMN reason_code text NOT NULL DEFAULT ''")
    for table in WITHOUT_ERROR:
        op.execute(f"ALTER TABLE {table} ADD COLUMN reason text NOT NULL DEFAULT ''")
    op.execute("ALTER TABLE networks ADD COLUMN problems jsonb NOT NULL DEFAULT '{}'")  # by node; '': the server's
    op.execute("ALTER TABLE drains ADD COLUMN time_limit_s int NOT NULL DEFAULT 14400, ADD COLUMN ends_by timestamptz")
