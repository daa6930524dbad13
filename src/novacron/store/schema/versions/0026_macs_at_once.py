"""The MAC addresses of all VMs that a statement makes are claimed at once: one VM after the other cost 1.3 ms each."""

from __future__ import annotations

from alembic import op

revision = "0026"
down_revision = "0025"

CLAIM = """
    CREATE FUNCTION nova_claim_new_macs() RETURNS trigger LANGUAGE plpgsql AS $$
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
            WHERE NOT EXISTS (SELECT FROM macs o WHERE o.mac = in_specs.mac AND o.shared)
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
"""A spec without MAC addresses comes from a server of an earlier version, which is updated last: the second part."""


def upgrade() -> None:
    op.execute(CLAIM)
    op.execute("DROP TRIGGER claim_macs ON vms")
    op.execute(
        "CREATE TRIGGER claim_macs AFTER INSERT ON vms REFERENCING NEW TABLE AS new_vms"
        " FOR EACH STATEMENT EXECUTE FUNCTION nova_claim_new_macs()"
    )
