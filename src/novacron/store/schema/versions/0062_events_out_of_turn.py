"""A transaction that began before those that changed an event may change it, too: what it says is only counted."""

from __future__ import annotations

from alembic import op

revision = "0062"
down_revision = "0061"

# Of other objects a change out of the feed's order is refused and tried again. To refuse what is done because its log
# was busy would be worse than an event that the API's caches count one short until its next change.
REVISION = """
CREATE OR REPLACE FUNCTION nova_set_event_revision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.revision := pg_current_xact_id()::text::bigint;
    IF TG_OP = 'UPDATE' THEN
        NEW.revision := greatest(NEW.revision, OLD.revision);
    END IF;
    RETURN NEW;
END $$
"""
TRIGGER = """
CREATE OR REPLACE TRIGGER revision BEFORE INSERT OR UPDATE ON events
FOR EACH ROW EXECUTE FUNCTION nova_set_event_revision()
"""


def upgrade() -> None:
    op.execute(REVISION)
    op.execute(TRIGGER)
