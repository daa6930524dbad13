"""Few events of one broken thing, also when several transactions write of it at once; and what is lasting stays."""

from __future__ import annotations

from alembic import op

revision = "0055"
down_revision = "0054"

EVENTS_PER_MINUTE_MAX = 5
"""As before."""

# As version 48, but who writes of an object waits for whoever does so already, and what says where a VM is, or that it
# is elsewhere, gives its place to nothing else while there is another one that can.
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
    PERFORM pg_advisory_xact_lock(hashtextextended('event ' || NEW.object, 0));
    IF (SELECT count(*) FROM (
            SELECT FROM events WHERE object = NEW.object AND at > clock_timestamp() - interval '60 seconds'
            AND last_at IS NOT NULL LIMIT {EVENTS_PER_MINUTE_MAX}
        ) lately) < {EVENTS_PER_MINUTE_MAX} THEN
        RETURN NEW;
    END IF;
    SELECT id INTO earlier FROM events e
    WHERE object = NEW.object AND at > clock_timestamp() - interval '60 seconds'
    AND last_at IS NOT NULL AND revision <= own
    ORDER BY kind = NEW.kind AND reason = NEW.reason DESC,
    reason IN ('FailedOver', 'RestartedElsewhere', 'Fenced', 'Moved', 'Recovered', 'Adopted') ASC,
    EXISTS (
        SELECT FROM events other WHERE other.object = e.object AND other.at > clock_timestamp() - interval '60 seconds'
        AND other.last_at IS NOT NULL AND other.id <> e.id AND other.reason = e.reason
    ) DESC, at DESC, id DESC LIMIT 1 FOR UPDATE OF e SKIP LOCKED;
    IF earlier IS NULL THEN
        RETURN NEW;
    END IF;
    UPDATE events SET count = count + 1, last_at = clock_timestamp(), kind = NEW.kind, name = NEW.name,
        reason = NEW.reason, message = NEW.message, actor = NEW.actor, project = NEW.project
    WHERE id = earlier;
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    op.execute(SERIES)
