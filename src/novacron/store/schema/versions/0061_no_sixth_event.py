"""No sixth event in a minute from a transaction that began before those of all five."""

from __future__ import annotations

from alembic import op

revision = "0061"
down_revision = "0060"

EVENTS_PER_MINUTE_MAX = 5
"""As before."""

# As version 55, but where all events of the minute were changed by later transactions, one of them is changed all the
# same: the API's caches, which keep what has the later revision, show that with its next change.
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
    IF earlier IS NULL THEN -- all were changed by transactions that began later
        SELECT id INTO earlier FROM events e
        WHERE object = NEW.object AND at > clock_timestamp() - interval '60 seconds' AND last_at IS NOT NULL
        ORDER BY reason IN ('FailedOver', 'RestartedElsewhere', 'Fenced', 'Moved', 'Recovered', 'Adopted') ASC,
        at DESC, id DESC LIMIT 1 FOR UPDATE OF e SKIP LOCKED;
    END IF;
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
