"""The feed's rows of all VMs and events that a statement makes are written at once: one by one cost more."""

from __future__ import annotations

from alembic import op

revision = "0064"
down_revision = "0063"

CHANGES = """
    CREATE OR REPLACE FUNCTION nova_changes_of_new() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO changes (kind, key, body, project)
            SELECT TG_ARGV[0], body ->> TG_ARGV[1], body, body ->> 'project'
            FROM (SELECT to_jsonb(r) AS body FROM new_rows r OFFSET 0) bodies;
        IF FOUND THEN
            PERFORM pg_notify('nova_feed', '');
        END IF;
        RETURN NULL;
    END $$
"""
"""What ``nova_change`` does with rows that are inserted. ``OFFSET 0``: the body is made once, not for each column."""
CLAIM = """
    CREATE OR REPLACE FUNCTION nova_claim_new_macs() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        claimed int;
        interfaces int;
        vm record;
    BEGIN
        WITH in_specs AS (
            SELECT id, 0 AS number, spec ->> 'mac' AS mac FROM new_vms
                WHERE spec ->> 'mac' IS NOT NULL AND jsonb_array_length(coalesce(spec -> 'nics', '[]')) = 0
            UNION ALL SELECT id, (place - 1)::int, nic ->> 'mac'
                FROM new_vms, jsonb_array_elements(spec -> 'nics') WITH ORDINALITY AS nics (nic, place)
                WHERE nic ->> 'mac' IS NOT NULL
        ) INSERT INTO macs (vm, number, mac) SELECT id, number, mac FROM in_specs
            WHERE (SELECT true FROM macs o WHERE o.mac = in_specs.mac AND o.shared LIMIT 1) IS NULL
            ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS claimed = ROW_COUNT;
        SELECT sum(greatest(1, jsonb_array_length(coalesce(spec -> 'nics', '[]')))) INTO interfaces FROM new_vms;
        IF claimed >= interfaces THEN RETURN NULL; END IF;
        FOR vm IN SELECT id, name, spec FROM new_vms ORDER BY id LOOP
            INSERT INTO macs (vm, number, mac, shared)
                SELECT vm.id, number, mac, EXISTS (SELECT FROM macs o WHERE o.mac = m.mac)
                FROM nova_macs(vm.id, vm.spec) m WHERE NOT in_spec ON CONFLICT DO NOTHING;
            IF (SELECT count(*) FROM macs WHERE macs.vm = vm.id) < (SELECT count(*) FROM nova_macs(vm.id, vm.spec)) THEN
                RAISE EXCEPTION 'a MAC address of VM % is taken', vm.name USING ERRCODE = 'serialization_failure';
            END IF;
        END LOOP;
        RETURN NULL;
    END $$
"""
"""As version 26, but it looks up each new address. With a join, PostgreSQL read all addresses of the fleet for each
create while it had no statistics of them."""


def upgrade() -> None:
    op.execute(CHANGES)
    op.execute(CLAIM)
    for table, kind in (("vms", "vm"), ("events", "event")):
        op.execute(
            f"CREATE OR REPLACE TRIGGER change AFTER UPDATE OR DELETE ON {table}"
            f" FOR EACH ROW EXECUTE FUNCTION nova_change('{kind}', 'id')"
        )
        op.execute(
            f"CREATE TRIGGER change_of_new AFTER INSERT ON {table} REFERENCING NEW TABLE AS new_rows"
            f" FOR EACH STATEMENT EXECUTE FUNCTION nova_changes_of_new('{kind}', 'id')"
        )
