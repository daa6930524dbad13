"""VMs that run from a backup while their disk is fetched: kills, a repository that is away, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable

from lab.platform import Platform
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

SLOWLY = 2 << 20
"""Bytes a second: slow enough for what happens on the way."""
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
    original, repository = boot_vm(site, new_vm), new_repository()
    fill(site, original)
    write_to_disk(site, original, "kept")
    backup = back_up(site, original, repository)
    vm = restore_live(site, backup, new_name())
    wait_until_booted(site, vm)
    vm = site.client.get("vms", vm["id"])
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
