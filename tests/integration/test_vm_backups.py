"""Backups of VMs: made while guests write, read by restic, verified, restored and booted; kills and full disks."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
from collections.abc import Callable

import pytest

from lab.platform import Platform, until
from tests.integration.conftest import Api
from tests.support.e2e_guest import disk_sum
from tests.support.vm_backups import NewRepository, back_up, ended
from tests.support.vms import (
    NewVm,
    Object,
    boot_vm,
    directory_of,
    read_from_disk,
    shell,
    wait_for_guest_agent,
    wait_until_booted,
    wait_until_node_answers,
    write_to_disk,
)
from tests.waiting import pause


def restic(site: Platform, repository: Object, *arguments: str) -> bytes:
    """Run the real restic on a repository, with the password that the API gives."""
    password = site.client.backup_repository_password(repository["id"])
    done = subprocess.run(
        ["restic", "--no-cache", "--repo", str(site.backup_dir / repository["id"]), *arguments],
        env={**os.environ, "RESTIC_PASSWORD": password}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def scratch_is_empty(site: Platform, node: str) -> bool:
    return not any((site.directory / node / "agent" / "backup-scratch").iterdir())


def damage(site: Platform, repository: Object) -> None:
    """Change a byte of the repository's largest pack."""
    pack = max((site.backup_dir / repository["id"] / "data").glob("*/*"), key=lambda path: path.stat().st_size)
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)


READY = "tiny guest: ready"


def fill_disk(site: Platform, vm: Object, device: str, where: str) -> None:
    """Let a guest write to its disk; ``where`` is in MiB, as dd takes it."""
    shell(site, vm, f"dd if=/dev/{device} of=/dev/vda bs=1M {where} conv=notrunc,fsync 2>/dev/null; echo done")


def test_a_running_vm_is_backed_up_again_and_again_and_each_backup_is_restored(
    site: Platform, new_vm: NewVm, new_repository: NewRepository, new_name: Callable[[], str]
) -> None:
    vm, repository = boot_vm(site, new_vm), new_repository()
    write_to_disk(site, vm, "first")
    fill_disk(site, vm, "urandom", "seek=20 count=4")
    fill_disk(site, vm, "zero", "seek=1 count=1")  # where its image holds something
    first = back_up(site, vm, repository)
    assert (first["result"]["mode"], first["result"]["parent"]) == ("full", "") and "first" in reason_of(first)
    site.agents[vm["node"]].kill()  # the record of what is written is QEMU's
    site.agents[vm["node"]].start()
    wait_until_node_answers(site, vm)
    write_to_disk(site, vm, "second")
    said = site.cli("backup", "create", vm["name"], "--repository", repository["name"]).stdout
    second = next(iter(site.client.list("backups", vm=vm["id"])))
    assert "kept" in said and second["id"] in said and "incremental, because QEMU recorded" in said
    assert (second["result"]["mode"], second["result"]["parent"]) == ("incremental", first["result"]["snapshot"])
    assert 0 < second["result"]["read_bytes"] < 1 << 20 and kept_events(site, vm, second) == 1
    assert second["result"]["written_bytes"] < 1 << 20 <= first["result"]["written_bytes"], "what changed is written"
    assert second["verified_at"] is None, "it was not read back yet"
    assert scratch_is_empty(site, vm["node"])
    assert f"{second['id']}: verified" in site.cli("backup", "verify", second["id"]).stdout
    restic(site, repository, "check", "--read-data")
    about = json.loads(restic(site, repository, "dump", second["result"]["snapshot"], "/vm/vm.json"))
    assert (about["name"], about["vm"], about["spec"]["image"]) == (vm["name"], vm["id"], "disk")
    dumped = restic(site, repository, "dump", second["result"]["snapshot"], "/vm/disk.raw")
    assert len(dumped) == second["result"]["disk_bytes"] and b"second" in dumped
    name = new_name()
    site.cli("backup", "restore", first["id"], name, "--node", "host-b", "--no-start")
    restored = site.client.get("vms", name)
    assert restored["node"] == "host-b" and restored["clone_of"] is None
    assert restored["spec"]["mac"] != vm["spec"]["mac"], "which the original still has"
    before = restic(site, repository, "dump", first["result"]["snapshot"], "/vm/disk.raw")
    assert disk_digest(site, restored) == hashlib.sha256(before).hexdigest(), "byte for byte as it was"
    site.cli("vm", "start", name, "--wait")
    wait_until_booted(site, restored)
    assert (read_from_disk(site, restored), read_from_disk(site, vm)) == ("first", "second")
    site.cli("vm", "delete", name, "--wait", "--yes")
    site.cli("backup", "delete", first["id"])
    assert [backup["id"] for backup in site.client.list("backups", vm=vm["id"])] == [second["id"]]
    assert restic(site, repository, "snapshots", "--json").count(b'"short_id"') == 1


def reason_of(backup: Object) -> str:
    """Return why so much was read for a backup."""
    return str(backup["result"]["mode_reason"])


def kept_events(site: Platform, vm: Object, backup: Object) -> int:
    """Count the events that say of a backup what was read for it, and why."""
    words = f"{backup['id']}: read: {backup['result']['mode']}, because {reason_of(backup)}"
    return sum(event["message"] == words for event in site.client.list("events", object=vm["id"]))


def disk_digest(site: Platform, vm: Object) -> str:
    """Return the SHA-256 of the disk of a VM that is off, as its guest would read it."""
    image = site.images_of(vm["node"]) / "disk" / "disk.raw"
    node = {
        "driver": "qcow2", "file": {"driver": "file", "filename": str(directory_of(site, vm) / "disk.qcow2")},
        "backing": {"driver": "raw", "file": {"driver": "file", "filename": str(image)}},
    }  # fmt: skip
    raw = directory_of(site, vm) / "digest.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", f"json:{json.dumps(node)}", str(raw)], check=True)
    try:
        with raw.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    finally:
        raw.unlink()


def test_what_can_not_be_backed_up_or_restored_is_refused_with_a_reason(
    site: Platform, api: Api, new_vm: NewVm, new_repository: NewRepository, new_name: Callable[[], str]
) -> None:
    vm, repository = new_vm(image="disk", power="stopped"), new_repository()
    site.wait_state(vm["id"], "stopped")
    refused = api("POST", f"/api/v1/vms/{vm['id']}/actions/backup", {"repository": "none"})
    assert (refused.status, refused.problem["field"]) == (404, "repository")
    backup = back_up(site, vm, repository)
    assert not backup["result"]["quiesced"]
    refused = api("DELETE", f"/api/v1/backup-repositories/{repository['id']}")
    assert refused.status == 409 and "1 backups" in refused.problem["detail"]
    damage(site, repository)
    verified = ended(site, site.client.verify_backup(backup["id"]))
    assert verified["phase"] == "damaged" and verified["error"] and verified["verified_at"] is None
    refused = api("POST", f"/api/v1/backups/{backup['id']}/actions/restore", {"name": new_name()})
    assert refused.status == 409 and "is damaged" in refused.problem["detail"]
    assert "stores them again" in verified["error"]
    back_up(site, vm, repository)
    restic(site, repository, "check", "--read-data")
    verified = ended(site, site.client.verify_backup(backup["id"]))
    assert (verified["phase"], verified["error"]) == ("kept", "") and verified["verified_at"] is not None


@pytest.mark.slow
def test_a_backup_whose_agent_is_killed_is_made_by_the_next_one(
    site: Platform, new_vm: NewVm, new_repository: NewRepository
) -> None:
    vm, repository = boot_vm(site, new_vm), new_repository()
    write_to_disk(site, vm, "kept")
    fill_disk(site, vm, "urandom", "seek=10 count=20")
    backup = site.client.back_up_vm(vm["id"], repository["id"])
    until(lambda: not scratch_is_empty(site, vm["node"]), "it is being made")
    agent = site.agents[vm["node"]]
    agent.kill()
    agent.start()
    wait_until_node_answers(site, vm)
    done = ended(site, backup)
    assert done["phase"] == "kept", done
    assert restic(site, repository, "snapshots", "--json").count(b'"short_id"') == 1
    restic(site, repository, "check", "--read-data")
    until(lambda: scratch_is_empty(site, vm["node"]), "nothing is left over")
    assert read_from_disk(site, vm) == "kept"


@pytest.mark.slow
def test_a_vm_that_is_deleted_during_its_backup_leaves_a_backup_or_the_reason(
    site: Platform, new_vm: NewVm, new_repository: NewRepository
) -> None:
    vm, repository = boot_vm(site, new_vm), new_repository()
    backup = site.client.back_up_vm(vm["id"], repository["id"])
    site.cli("vm", "delete", vm["name"], "--wait", "--yes")
    done = ended(site, backup)
    assert done["phase"] == "kept" or done["error"], done
    until(lambda: scratch_is_empty(site, vm["node"]), "nothing is left over")


@pytest.mark.slow
def test_a_backup_that_is_given_up_leaves_nothing(site: Platform, new_vm: NewVm, new_repository: NewRepository) -> None:
    vm, repository = boot_vm(site, new_vm), new_repository()
    backup = site.client.back_up_vm(vm["id"], repository["id"])
    site.client.delete("backups", backup["id"])
    until(lambda: not list(site.client.list("backups", vm=vm["id"])), "it is gone", 60)
    until(lambda: scratch_is_empty(site, vm["node"]), "nothing is left over")
    again = back_up(site, vm, repository)
    assert restic(site, repository, "snapshots", "--json").count(b'"short_id"') == 1 and again


@pytest.mark.slow
def test_a_full_repository_fails_the_backup_and_not_the_guest(
    site: Platform, new_vm: NewVm, new_repository: NewRepository
) -> None:
    vm, repository = boot_vm(site, new_vm), new_repository()
    kept = back_up(site, vm, repository)
    fill_disk(site, vm, "urandom", "seek=10 count=4")
    small = site.backup_dir / repository["id"] / "data"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(small)], check=True)
    try:
        done = ended(site, site.client.back_up_vm(vm["id"], repository["id"]))
        assert (done["phase"], done["reason_code"]) == ("failed", "NoSpace"), done
        write_to_disk(site, vm, "goes on")
        assert read_from_disk(site, vm) == "goes on"
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert back_up(site, vm, repository)["result"]["written_bytes"] > 4 << 20
    assert ended(site, site.client.verify_backup(kept["id"]))["verified_at"] is not None


@pytest.mark.slow
def test_a_guest_that_is_quiesced_writes_out_what_it_has_and_goes_on(
    site: Platform, new_vm: NewVm, new_repository: NewRepository, new_name: Callable[[], str]
) -> None:
    vm, repository = wait_for_guest_agent(site, new_vm(image="filesystem", cloud_init={})), new_repository()
    assert shell(site, vm, "echo kept > /data/file && echo done") == "done"
    backup = back_up(site, vm, repository)
    assert backup["result"]["quiesced"]
    assert shell(site, vm, "echo later > /data/file && sync && echo done") == "done", "it may write again"
    name = new_name()
    site.cli("backup", "restore", backup["id"], name)
    restored = wait_for_guest_agent(site, site.client.get("vms", name))
    assert shell(site, restored, "cat /data/file") == "kept"
    site.cli("vm", "delete", name, "--wait", "--yes")


def test_a_policy_backs_its_vm_up_reads_it_back_and_says_so(
    site: Platform, new_vm: NewVm, new_repository: NewRepository, new_name: Callable[[], str]
) -> None:
    vm, repository, name = boot_vm(site, new_vm), new_repository(), new_name()
    said = site.cli(
        "backup", "policy", "create", name, "--repository", repository["name"], "--vm", vm["name"], "--keep-last", "1"
    )
    assert "promises" in said.stdout
    try:
        for _ in range(2):  # the second one takes the place of the first
            site.cli("backup", "policy", "run", name)
            until(lambda: _verified(site, vm, name), "a backup of the policy was read back", 120)
        until(lambda: len(list(site.client.list("backups", policy=name))) == 1, "the first one is gone", 60)
        (backup,) = site.client.list("backups", policy=name)
        now = site.client.get("vms", vm["id"])["backups"]
        assert now["policies"] == [name] and now["newest_at"] == backup["created_at"]
        assert "late" not in site.cli("vm", "list", "--name", vm["name"]).stdout
    finally:
        site.cli("backup", "policy", "delete", name)


def _verified(site: Platform, vm: Object, policy: str) -> bool:
    """Say whether all backups of a policy that was run were read back, and the VM says so."""
    asked = site.client.get("backup-policies", policy)["run_at"]
    made = [backup for backup in site.client.list("backups", policy=policy) if backup["created_at"] >= asked]
    shown = site.client.get("vms", vm["id"])["backups"]
    return bool(made) and shown["verified_at"] == made[0]["created_at"]


@pytest.mark.slow
def test_a_backup_restores_the_state_of_firmware_and_tpm(
    site: Platform, new_vm: NewVm, new_repository: NewRepository, new_name: Callable[[], str]
) -> None:
    vm, repository = new_vm(image="disk", firmware="uefi", tpm=True), new_repository()
    vm = site.client.get("vms", site.wait_state(vm["id"], "running")["id"])
    files = ("nvram.fd", "tpm/tpm2-00.permall")
    until(lambda: (directory_of(site, vm) / files[1]).exists(), "its TPM remembers something")
    site.cli("vm", "kill", vm["name"], "--wait")
    with (directory_of(site, vm) / files[0]).open("r+b") as opened:  # as its guest would set one
        opened.seek(-4096, os.SEEK_END)
        opened.write(b"remembered")
    kept = [(directory_of(site, vm) / name).read_bytes() for name in files]
    backup, name = back_up(site, vm, repository), new_name()
    site.cli("backup", "restore", backup["id"], name, "--no-start")
    restored = site.client.get("vms", name)
    assert [(directory_of(site, restored) / file).read_bytes() for file in files] == kept
    site.cli("vm", "start", name, "--wait")
    site.cli("vm", "delete", name, "--wait", "--yes")


@pytest.mark.slow
def test_whatever_happens_to_a_vm_between_backups_each_has_its_disk_as_it_was(
    site: Platform, new_vm: NewVm, new_repository: NewRepository
) -> None:
    vm, repository = boot_vm(site, new_vm), new_repository()

    def again(mode: str, why: str) -> None:
        """Write to the disk, back the VM up, and compare what restic reads with what the guest reads."""
        fill_disk(site, vm, "urandom", f"seek={random.randrange(10, 30)} count=1")
        backup = back_up(site, vm, repository)
        assert backup["result"]["mode"] == mode and why in reason_of(backup), backup["result"]
        dumped = restic(site, repository, "dump", backup["result"]["snapshot"], "/vm/disk.raw")
        assert disk_sum(site, vm).split()[0] == hashlib.md5(dumped, usedforsecurity=False).hexdigest()

    again("full", "first")
    again("incremental", "recorded")
    site.cli("snapshot", "create", vm["name"], "before", "--memory")
    again("incremental", "recorded")
    site.cli("snapshot", "revert", vm["name"], "before")
    again("full", "reverted")
    again("incremental", "recorded")
    site.cli("snapshot", "delete", vm["name"], "before")
    site.cli("vm", "migrate", vm["name"], "--to", "host-b" if vm["node"] == "host-a" else "host-a")
    vm = site.client.get("vms", vm["id"])
    again("full", "ended when QEMU ended")
    again("incremental", "recorded")
    site.cli("vm", "kill", vm["name"], "--wait")
    site.cli("vm", "start", vm["name"], "--wait")
    wait_until_booted(site, vm)
    again("full", "ended when QEMU ended")
    newest = next(iter(site.client.list("backups", vm=vm["id"])))
    site.cli("backup", "delete", newest["id"])
    again("full", "no longer complete in the repository")


def test_a_backup_takes_the_place_of_its_vms_disk_or_leaves_it_as_it_was(
    site: Platform, api: Api, new_vm: NewVm, new_repository: NewRepository
) -> None:
    vm, repository = boot_vm(site, new_vm), new_repository()
    write_to_disk(site, vm, "first")
    fill_disk(site, vm, "urandom", "seek=20 count=4")
    backup = back_up(site, vm, repository)
    before = hashlib.sha256(restic(site, repository, "dump", backup["result"]["snapshot"], "/vm/disk.raw")).hexdigest()
    write_to_disk(site, vm, "second")
    fill_disk(site, vm, "urandom", "seek=22 count=6")
    path = f"/api/v1/backups/{backup['id']}/actions/replace"
    assert api("POST", path).status == 409, "it runs"
    site.cli("vm", "stop", vm["name"], "--force", "--wait")
    said = site.cli("backup", "restore", backup["id"], "--in-place", check=False)
    assert said.returncode == 2 and "All that VM" in said.stderr, "nobody said --yes"
    site.cli("backup", "restore", backup["id"], "--in-place", "--yes")
    now = site.client.get("vms", vm["id"])
    assert (now["clone_of"], now["spec"]["mac"], now["node"]) == (None, vm["spec"]["mac"], vm["node"])
    assert disk_digest(site, now) == before, "byte for byte as it was"
    site.cli("vm", "start", vm["name"], "--wait")
    until(lambda: site.console_log(vm).count(READY) == 2, "it has booted again", 60)
    assert read_from_disk(site, vm) == "first"
    write_to_disk(site, vm, "third")
    again = back_up(site, vm, repository)
    assert again["result"]["mode"] == "full", "what QEMU had recorded was of another disk"
    site.cli("vm", "stop", vm["name"], "--force", "--wait")
    as_it_is = disk_digest(site, vm)
    damage(site, repository)
    failed = site.cli("backup", "restore", backup["id"], "--in-place", "--yes", check=False)
    assert failed.returncode == 1 and "its disk is as it was" in failed.stderr
    assert disk_digest(site, vm) == as_it_is
    site.cli("vm", "start", vm["name"], "--wait")
    until(lambda: site.console_log(vm).count(READY) == 3, "it has booted again", 60)
    assert read_from_disk(site, vm) == "third"
    site.cli("snapshot", "create", vm["name"], "s1")
    site.cli("vm", "stop", vm["name"], "--force", "--wait")
    assert "has snapshots" in api("POST", path).problem["detail"]


@pytest.mark.slow
def test_a_disk_that_is_replaced_is_whole_also_after_kills_of_the_agent(
    site: Platform, new_vm: NewVm, new_repository: NewRepository
) -> None:
    vm, repository = boot_vm(site, new_vm), new_repository()
    fill_disk(site, vm, "urandom", "seek=20 count=8")
    backup = back_up(site, vm, repository)
    before = hashlib.sha256(restic(site, repository, "dump", backup["result"]["snapshot"], "/vm/disk.raw")).hexdigest()
    for number, delay_s in enumerate((0.05, 0.3, 0.6, 1.0)):
        fill_disk(site, vm, "urandom", "seek=10 count=4")
        site.cli("vm", "stop", vm["name"], "--force", "--wait")
        site.client.replace_with_backup(backup["id"])
        pause(delay_s)
        site.agents[vm["node"]].kill()
        site.agents[vm["node"]].start()
        until(lambda: site.client.get("vms", vm["id"])["clone_of"] is None, "it has its disk", 90)
        assert disk_digest(site, vm) == before, delay_s
        names = {path.name for path in directory_of(site, vm).iterdir()}
        assert not names & {"replacing", "restored.qcow2", "restored.raw"}
        site.cli("vm", "start", vm["name"], "--wait")
        until(lambda boots=number + 2: site.console_log(vm).count(READY) == boots, "it has booted", 90)  # type: ignore[misc]
    assert "RestoreFailed" not in {event["reason"] for event in site.client.list("events", object=vm["id"])}
