"""Proofs of backups: VMs made of them start, reach nothing, show what was asked for, and are gone afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.platform import Platform, until
from tests.integration.conftest import Api
from tests.support.vm_backups import NewRepository, back_up, proof_ended, vms_for_proofs
from tests.support.vms import NewVm, boot_vm, wait_for_guest_agent

READY = "novacron tiny guest: ready"


def test_a_vm_made_of_a_backup_starts_and_reaches_nothing(
    site: Platform, new_vm: NewVm, new_repository: NewRepository, tmp_path: Path
) -> None:
    vm = boot_vm(site, new_vm)
    backup = back_up(site, vm, new_repository())
    assert site.client.get("vms", vm["id"])["backups"]["proved_at"] is None
    asked = site.client.prove_backup(backup["id"], line=READY)
    assert asked["proof"]["phase"] == "waiting"
    until(lambda: any(proof["status"]["pid"] for proof in vms_for_proofs(site, backup)), "its VM runs", 60)
    [proof] = vms_for_proofs(site, backup)
    command = Path(f"/proc/{proof['status']['pid']}/cmdline").read_bytes().split(b"\0")
    assert command.count(b"-netdev") == 1 and b"user,id=net0,restrict=on" in command, "it is wired to nothing"
    assert proof["spec"]["ha"] is False and backup["id"] in proof["description"]
    done = proof_ended(site, backup)
    assert (done["proof"]["phase"], done["proof"]["error"]) == ("proved", "")
    assert READY in done["proof"]["answer"] and 0 <= done["proof"]["start_s"] < 120
    until(lambda: not vms_for_proofs(site, backup), "its VM is gone", 60)
    assert site.client.get("vms", vm["id"])["backups"]["proved_at"] == backup["created_at"]
    picture = tmp_path / "screen.png"
    site.cli("backup", "picture", backup["id"], str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "proved: " in site.cli("backup", "show", backup["id"]).stdout
    shown = "BackupProved" in {event["reason"] for event in site.client.list("events", object=vm["id"])}
    assert shown, "whoever looks at the VM sees it"


@pytest.mark.slow
def test_a_backup_that_does_not_show_what_it_should_is_not_proved(
    site: Platform, api: Api, new_vm: NewVm, new_repository: NewRepository
) -> None:
    vm = boot_vm(site, new_vm)
    backup = back_up(site, vm, new_repository())
    failed = site.cli(
        "backup", "prove", backup["id"], "--probe-line", "it is never printed", "--probe-timeout", "10s", check=False
    )
    assert failed.returncode == 1, failed.stderr
    assert "'it is never printed' is not on its serial console" in failed.stderr
    until(lambda: not vms_for_proofs(site, backup), "its VM is gone", 60)
    assert "novacron_vms_backup_proof_failed 1" in site.client.metrics()
    assert site.client.get("vms", vm["id"])["backups"]["proof_failed"] is True
    for probe, field in (({"timeout_s": 1}, "timeout_s"), ({"line": "\x1b"}, "line"), ({"command": [1]}, "command")):
        assert api("POST", f"/api/v1/backups/{backup['id']}/actions/prove", probe).problem["field"] == field
    site.client.prove_backup(backup["id"], line=READY)
    assert api("POST", f"/api/v1/backups/{backup['id']}/actions/prove", {}).status == 409, "one at a time"
    until(lambda: vms_for_proofs(site, backup), "its VM is there", 60)
    site.client.delete("backups", backup["id"])
    until(lambda: not vms_for_proofs(site, backup), "its VM goes with its backup", 60)


@pytest.mark.slow
def test_a_drill_proves_the_backups_of_vms_and_leaves_none_of_their_vms(
    site: Platform, new_vm: NewVm, new_repository: NewRepository
) -> None:
    vm = wait_for_guest_agent(site, new_vm(image="filesystem", cloud_init={}))
    backup = back_up(site, vm, new_repository())
    done = site.cli("drill", "run", "backup-proofs", "--vms", "1", "-o", "json")
    run = json.loads(done.stdout)
    assert run["verdict"] == "passed" and run["measured"]["recover_s"] > 0, run
    assert f"start a VM made of {backup['id']}, of {vm['name']}" in {step["name"] for step in run["steps"]}
    assert not vms_for_proofs(site, backup), "its VM is gone"
    assert site.client.get("backups", backup["id"])["proof"]["phase"] == "proved"


@pytest.mark.slow
def test_a_policy_proves_its_backups_by_a_command_in_the_guest_also_after_kills(
    site: Platform, new_vm: NewVm, new_repository: NewRepository
) -> None:
    vm = wait_for_guest_agent(site, new_vm(image="filesystem", cloud_init={}))
    name = f"proving-{vm['name']}"
    site.cli(
        *("backup", "policy", "create", name, "--repository", new_repository()["name"], "--vm", vm["name"]),
        *("--schedule", "monthly", "--prove-days", "7", "--probe-command", "sh -c 'test -d /tmp; echo fine'"),
    )
    try:
        site.cli("backup", "policy", "run", name)
        until(lambda: vms_for_proofs(site), "a backup is being proved", 120)
        site.server.kill()
        site.server.start()
        site.wait_ready()
        [backup] = site.client.list("backups", vm=vm["id"])
        done = proof_ended(site, backup)
        assert done["proof"]["phase"] == "proved", done["proof"]
        assert done["proof"]["answer"].endswith("'sh -c test -d /tmp; echo fine' ended with exit code 0: fine")
        said = site.cli(
            "backup", "prove", backup["id"], "--probe-command", "false", "--probe-timeout", "60s", check=False
        )
        assert said.returncode == 1 and "'false' ended with exit code 1 in the guest" in said.stderr
        until(lambda: not vms_for_proofs(site), "no VM is left", 60)
    finally:
        site.cli("backup", "policy", "delete", name)
