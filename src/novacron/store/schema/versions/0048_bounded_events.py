"""Few events of one broken thing, also when it breaks in ever other ways."""

from __future__ import annotations

from alembic import op

revision = "0048"
down_revision = "0047"

EVENTS_PER_MINUTE_MAX = 5
"""As before; by now it counts whatever their reasons."""

# Beyond them, an event is counted in the last one that has its reason, or else takes the place of the last one of
# which another has the same reason, or else of the last one.
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
    SELECT id INTO earlier FROM events e
    WHERE object = NEW.object AND at > clock_timestamp() - interval '60 seconds'
    AND last_at IS NOT NULL AND revision <= own
    ORDER BY kind = NEW.kind AND reason = NEW.reason DESC, EXISTS (
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
