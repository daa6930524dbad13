"""VMs that outlive their node, nodes that were cut off for certain, and events that count their repeats."""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"

EVENTS_PER_MINUTE_MAX = 5
"""Events of one object that the system records within a minute, before those that repeat a reason are counted instead.
"""

SERIES = f"""
CREATE FUNCTION nova_event_series() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    earlier bigint;
    own bigint := pg_current_xact_id()::text::bigint;
BEGIN
    IF NOT (NEW.actor = 'system' OR NEW.actor LIKE 'drain of %') THEN
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
    op.execute("ALTER TABLE vms ADD COLUMN lost_on text")
    op.execute("ALTER TABLE vms DROP CONSTRAINT vms_check, ADD CONSTRAINT vms_check CHECK (node IS NULL OR epoch > 0)")
    op.execute("CREATE INDEX vms_lost ON vms (lost_on) WHERE lost_on IS NOT NULL")
    op.execute("ALTER TABLE node_leases ADD COLUMN cut_off boolean NOT NULL DEFAULT false")
    op.execute("ALTER TABLE events ADD COLUMN count int NOT NULL DEFAULT 1, ADD COLUMN last_at timestamptz")
    op.execute(SERIES)
    op.execute("CREATE TRIGGER series BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION nova_event_series()")
