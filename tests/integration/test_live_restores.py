"""VMs that run from a backup while their disk is fetched: kills, a repository that is away, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from lab.platform import Platform, until
from tests.integration.conftest import Api
from tests.support.vm_backups import NewRepository, back_up
from tests.support.vms import (
    NewVm,
    Object,
    boot_vm,
    directory_of,
    read_from_disk,
    shell,
    wait_until_booted,
    wait_until_node_answers,
    write_to_disk,
)

SLOWLY = 1 << 20
"""Bytes a second: about a minute, in which guests boot and agents are killed also where the processors have other work.
It costs hardly any processor time."""
MARK_MIB = 3
"""Where a guest writes while its disk is restored, of which the backup has something else."""


def fill(site: Platform, vm: Object) -> None:
    """Have something on a VM's disk that no image has."""
    shell(site, vm, "dd if=/dev/urandom of=/dev/vda bs=1M seek=16 count=24 conv=notrunc,fsync 2>/dev/null; echo done")


def write_while_restored(site: Platform, vm: Object) -> None:
    shell(site, vm, f"yes new | head -c 4096 | dd of=/dev/vda bs=4096 seek={MARK_MIB << 8} conv=notrunc,fsync"
                    " 2>/dev/null; echo done")  # fmt: skip


def disk_of(site: Platform, vm: Object) -> bytes:
    """Return the disk of a VM that is off, of which all has to be in its own layer."""
    layer, raw = directory_of(site, vm) / "disk.qcow2", directory_of(site, vm) / "compare.raw"
    node = {"driver": "qcow2", "file": {"driver": "file", "filename": str(layer)}}
    subprocess.run(["qemu-img", "convert", "-O", "raw", f"json:{json.dumps(node)}", str(raw)], check=True)
    content = raw.read_bytes()
    raw.unlink()
    return content


def dumped(site: Platform, repository: Object, backup: Object) -> bytes:
    """Return the disk in a backup, as the real restic reads it."""
    password = site.client.backup_repository_password(repository["id"])
    command = ["restic", "--no-cache", "--repo", str(site.backup_dir / repository["id"]), "dump"]
    return subprocess.run(
        [*command, backup["result"]["snapshot"], "/vm/disk.raw"], env={**os.environ, "RESTIC_PASSWORD": password},
        capture_output=True, check=True,
    ).stdout  # fmt: skip


def restore_live(site: Platform, backup: Object, name: str, *, rate: int | None = SLOWLY) -> Object:
    fields = {"live": True, **({} if rate is None else {"bytes_per_s": rate})}
    vm: Object = site.client.restore_backup(backup["id"], name, **fields)
    return vm


def running_from_backup(site: Platform, original: Object, repository: Object, name: str) -> tuple[Object, Object]:
    """Return a backup of a VM with something to read, and a VM that has booted from it."""
    fill(site, original)
    write_to_disk(site, original, "kept")
    backup = back_up(site, original, repository)
    vm = restore_live(site, backup, name)
    wait_until_booted(site, vm)
    return backup, site.client.get("vms", vm["id"])


def is_restoring(site: Platform, vm: Object) -> bool:
    return site.client.get("vms", vm["id"])["clone_of"] is not None


def wait_until_whole(site: Platform, vm: Object, timeout_s: float = 90) -> Object:
    return site.wait_vm(vm["id"], lambda now: now["clone_of"] is None, "all of its disk is here", timeout_s)


def check_disk(site: Platform, vm: Object, repository: Object, backup: Object) -> None:
    """Compare a VM's disk with its backup, but for what the guest wrote."""
    site.cli("vm", "stop", vm["name"], "--wait", "--timeout", "60")
    has, was = bytearray(disk_of(site, vm)), bytearray(dumped(site, repository, backup))
    mark = slice(MARK_MIB << 20, (MARK_MIB << 20) + 4096)
    assert has[mark] == (b"new\n" * 1024), "what the guest wrote while its disk was restored"
    has[mark] = was[mark] = b""
    assert hashlib.sha256(has).hexdigest() == hashlib.sha256(was).hexdigest()


def test_a_vm_runs_from_its_backup_at_once_and_its_disk_is_whole_though_its_agent_is_killed_on_the_way(
    site: Platform, api: Api, new_vm: NewVm, new_repository: NewRepository, new_name: Callable[[], str]
) -> None:
    repository = new_repository()
    backup, vm = running_from_backup(site, boot_vm(site, new_vm), repository, new_name())
    assert is_restoring(site, vm) and (directory_of(site, vm) / "restoring").exists()
    assert read_from_disk(site, vm) == "kept"
    write_while_restored(site, vm)
    refused = api("DELETE", f"/api/v1/backups/{backup['id']}")
    assert refused.status == 409 and f"VM {vm['name']} runs from" in refused.problem["detail"]
    for action, body in (("snapshot", {"name": "early"}), ("backup", {"repository": repository["id"]})):
        path = "snapshots" if action == "snapshot" else "actions/backup"
        refused = api("POST", f"/api/v1/vms/{vm['id']}/{path}", body)
        assert refused.status == 409, (action, refused.body)
    site.agents[vm["node"]].kill()
    site.agents[vm["node"]].start()
    wait_until_node_answers(site, vm)
    assert is_restoring(site, vm) and " %, from " in site.cli("vm", "show", vm["name"]).stdout
    assert read_from_disk(site, vm) == "kept", "which the next agent fetches"
    wait_until_whole(site, vm)
    reasons = [event["reason"] for event in site.client.list("events", object=vm["id"])]
    assert "Restored" in reasons, reasons
    assert read_from_disk(site, vm) == "kept"
    check_disk(site, vm, repository, backup)
    site.cli("vm", "delete", vm["name"], "--wait", "--yes")
    site.client.delete("backups", backup["id"])


@pytest.mark.slow
def test_a_guest_whose_repository_is_away_stands_still_and_goes_on_and_loses_nothing_with_its_qemu(
    site: Platform, new_vm: NewVm, new_repository: NewRepository, new_name: Callable[[], str]
) -> None:
    repository = new_repository()
    backup, vm = running_from_backup(site, boot_vm(site, new_vm), repository, new_name())
    write_while_restored(site, vm)
    data = site.backup_dir / repository["id"] / "data"
    data.rename(data.with_name("hidden"))
    try:
        away = site.wait_vm(
            vm["id"], lambda now: now["status"]["reason_code"] == "RepositoryAway", "it is said that it is away", 60
        )
        assert "can't be read from its backup" in away["status"]["reason"]
        os.kill(away["status"]["pid"], signal.SIGKILL)
        site.wait_vm(vm["id"], lambda now: now["status"]["crashes"] > 0, "its QEMU has ended", 30)
    finally:
        data.with_name("hidden").rename(data)
    site.wait_vm(vm["id"], lambda now: now["status"]["state"] == "running" and not now["status"]["reason_code"],
                 "it runs again", 60)  # fmt: skip
    until(lambda: site.console_log(vm).count("tiny guest: ready") >= 1, "it has booted again", 60)
    assert is_restoring(site, vm)
    reasons = [event["reason"] for event in site.client.list("events", object=vm["id"])]
    assert "RepositoryAway" in reasons, reasons
    wait_until_whole(site, vm)
    assert read_from_disk(site, vm) == "kept"
    check_disk(site, vm, repository, backup)


@pytest.mark.slow
def test_a_vm_that_is_deleted_while_it_is_restored_leaves_nothing_and_its_backup_can_be_deleted(
    site: Platform, api: Api, new_vm: NewVm, new_repository: NewRepository, new_name: Callable[[], str]
) -> None:
    original, repository = boot_vm(site, new_vm), new_repository()
    fill(site, original)
    backup = back_up(site, original, repository)
    name = new_name()
    refused = api("POST", f"/api/v1/backups/{backup['id']}/actions/restore",
                  {"name": name, "live": True, "power": "stopped"})  # fmt: skip
    assert (refused.status, refused.problem["field"]) == (400, "live"), refused.body
    refused = api("POST", f"/api/v1/backups/{backup['id']}/actions/restore", {"name": name, "bytes_per_s": 1 << 20})
    assert (refused.status, refused.problem["field"]) == (400, "bytes_per_s"), refused.body
    vm = restore_live(site, backup, name)
    wait_until_booted(site, vm)
    vm = site.client.get("vms", vm["id"])
    refused = api("PATCH", f"/api/v1/vms/{vm['id']}", {"disk_mib": 1024})
    assert refused.status == 409 and "runs from" in refused.problem["detail"]
    refused = api("POST", f"/api/v1/vms/{vm['id']}/actions/clone", {"name": new_name()})
    assert refused.status == 409
    site.cli("vm", "delete", vm["name"], "--wait", "--yes")
    assert not directory_of(site, vm).exists()
    site.cli("backup", "delete", backup["id"])


@pytest.mark.slow
def test_a_vm_that_is_stopped_while_it_is_restored_goes_on_with_its_next_start(
    site: Platform, new_vm: NewVm, new_repository: NewRepository, new_name: Callable[[], str]
) -> None:
    original, repository = boot_vm(site, new_vm), new_repository()
    fill(site, original)
    backup = back_up(site, original, repository)
    vm = restore_live(site, backup, new_name())
    wait_until_booted(site, vm)
    vm = site.client.get("vms", vm["id"])
    write_while_restored(site, vm)
    site.cli("vm", "stop", vm["name"], "--wait", "--timeout", "60")
    assert is_restoring(site, vm)
    site.agents[vm["node"]].kill()
    site.agents[vm["node"]].start()
    wait_until_node_answers(site, original)
    site.cli("vm", "start", vm["name"], "--wait")
    wait_until_whole(site, vm)
    check_disk(site, vm, repository, backup)
