"""MAC addresses, each of one interface only. VMs that exist keep theirs, even where two have the same."""

from __future__ import annotations

from alembic import op

revision = "0022"
down_revision = "0021"

FROM_ID = (
    "'52:54:00:' || regexp_replace(substr(encode(sha256(convert_to("
    "id || CASE WHEN n > 0 THEN '/' || n ELSE '' END, 'UTF8')), 'hex'), 1, 6), '(..)(..)(..)', '\\1:\\2:\\3')"
)
"""What ``novacron.model.mac.from_id`` returns."""

CLAIM = """
    CREATE FUNCTION nova_claim_macs() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE claimed int;
    BEGIN
        IF TG_OP = 'UPDATE' THEN DELETE FROM macs WHERE vm = NEW.id; END IF;
        INSERT INTO macs (vm, number, mac, shared)
            SELECT NEW.id, number, mac, taken FROM (
                SELECT *, EXISTS (SELECT FROM macs o WHERE o.mac = m.mac AND NOT o.shared)
                          OR EXISTS (SELECT FROM macs o WHERE o.mac = m.mac AND o.shared) AS taken
                FROM nova_macs(NEW.id, NEW.spec) m) addresses
            WHERE NOT (taken AND in_spec)
            ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS claimed = ROW_COUNT;
        IF claimed < (SELECT count(*) FROM nova_macs(NEW.id, NEW.spec)) THEN
            RAISE EXCEPTION 'a MAC address of VM % is taken', NEW.name USING ERRCODE = 'serialization_failure';
        END IF;
        RETURN NULL;
    END $$
"""
"""A spec without MAC addresses comes from a server of an earlier version, which is updated last."""


def upgrade() -> None:
    op.execute(
        "CREATE TABLE macs (vm text NOT NULL, number int NOT NULL, mac text NOT NULL,"
        " shared boolean NOT NULL DEFAULT false, PRIMARY KEY (vm, number))"
    )
    op.execute("COMMENT ON COLUMN macs.shared IS 'another interface had the address first, before each had its own'")
    op.execute("CREATE UNIQUE INDEX macs_mac ON macs (mac) WHERE NOT shared")
    op.execute("CREATE INDEX macs_shared ON macs (mac) WHERE shared")
    op.execute(
        "CREATE FUNCTION nova_macs(id text, spec jsonb) RETURNS TABLE (number int, mac text, in_spec boolean)"
        f" LANGUAGE sql STABLE AS $$ SELECT n, coalesce(said, {FROM_ID}), said IS NOT NULL"
        " FROM (SELECT n, CASE WHEN nics = 0 THEN spec ->> 'mac' ELSE spec -> 'nics' -> n ->> 'mac' END AS said"
        " FROM (SELECT CASE jsonb_typeof(spec -> 'nics') WHEN 'array' THEN jsonb_array_length(spec -> 'nics')"
        " ELSE 0 END AS nics) counted,"
        " generate_series(0, greatest(nics, 1) - 1) AS n) interfaces $$"
    )
    op.execute(CLAIM)
    op.execute(
        "CREATE FUNCTION nova_release_macs() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN DELETE FROM macs WHERE vm = OLD.id; RETURN NULL; END $$"
    )
    op.execute("LOCK TABLE vms IN SHARE ROW EXCLUSIVE MODE")
    op.execute(
        "INSERT INTO macs (vm, number, mac, shared)"
        " SELECT id, number, mac, row_number() OVER (PARTITION BY mac ORDER BY created_at, id, number) > 1"
        " FROM vms, nova_macs(id, spec)"
    )
    op.execute("CREATE TRIGGER claim_macs AFTER INSERT ON vms FOR EACH ROW EXECUTE FUNCTION nova_claim_macs()")
    op.execute(
        "CREATE TRIGGER reclaim_macs AFTER UPDATE OF spec ON vms FOR EACH ROW"
        " WHEN (OLD.spec -> 'mac' IS DISTINCT FROM NEW.spec -> 'mac'"
        " OR OLD.spec -> 'nics' IS DISTINCT FROM NEW.spec -> 'nics') EXECUTE FUNCTION nova_claim_macs()"
    )
    op.execute("CREATE TRIGGER release_macs AFTER DELETE ON vms FOR EACH ROW EXECUTE FUNCTION nova_release_macs()")
