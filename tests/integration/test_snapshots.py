"""Snapshots of real disks and memory: made, gone back to, deleted, and interrupted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.platform import Platform, until
from tests.integration.conftest import Api
from tests.support.vms import (
    Object,
    boot_vm,
    count_boots,
    directory_of,
    put_clock_back,
    read_from_disk,
    shell,
    snapshots_in_file,
    until_clock_is_right,
    wait_for_guest_agent,
    wait_until_node_answers,
    write_to_disk,
)

NewVm = Callable[..., dict[str, Any]]


@pytest.fixture
def small(tmp_path: Path) -> Any:
    """Put a VM's directory onto a file system of so many MiB."""
    mounted: list[Path] = []

    def shrink(path: Path, mib: int) -> None:
        saved = tmp_path / "saved"
        subprocess.run(["cp", "-a", str(path), str(saved)], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(path)], check=True)
        mounted.append(path)
        subprocess.run(["cp", "-a", f"{saved}/.", str(path)], check=True)

    yield shrink
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=False)


def names(site: Platform, vm: Object) -> list[str]:
    return [line.split()[0] for line in site.cli("snapshot", "list", vm["name"]).stdout.splitlines()[1:]]


def test_a_disk_is_reverted_back_and_forth_in_its_snapshot_tree(site: Platform, new_vm: NewVm) -> None:
    vm = boot_vm(site, new_vm)
    for text in ("one", "two"):
        write_to_disk(site, vm, text)
        assert "ready" in site.cli("snapshot", "create", vm["name"], text).stdout
    write_to_disk(site, vm, "three")
    site.cli("snapshot", "revert", vm["name"], "one")
    until(lambda: count_boots(site, vm) == 2, "it has booted from what it was", 60)
    until(lambda: site.console_log(vm).count("tiny guest: ready") == 2, "it is up", 60)
    assert read_from_disk(site, vm) == "one"
    write_to_disk(site, vm, "lost")
    site.cli("snapshot", "revert", vm["name"], "one")
    until(lambda: site.console_log(vm).count("tiny guest: ready") == 3, "it is up", 60)
    assert read_from_disk(site, vm) == "one", "also the second time"
    write_to_disk(site, vm, "other")
    site.cli("snapshot", "create", vm["name"], "branch")
    listed = site.cli("snapshot", "list", vm["name"]).stdout.splitlines()[1:]
    assert [line.rstrip().split("  ready")[0].rstrip() for line in listed] == ["one", "  two", "  branch *"]
    site.cli("snapshot", "delete", vm["name"], "one")
    assert names(site, vm) == ["two", "branch"] and read_from_disk(site, vm) == "other", "it goes on running"
    site.cli("vm", "kill", vm["name"], "--wait")
    site.cli("snapshot", "create", vm["name"], "off")
    site.cli("snapshot", "revert", vm["name"], "two")
    site.cli("vm", "start", vm["name"], "--wait")
    until(lambda: site.console_log(vm).count("tiny guest: ready") == 4, "it is up", 60)
    assert read_from_disk(site, vm) == "two"
    site.cli("snapshot", "delete", vm["name"], "branch")
    assert len(snapshots_in_file(site, vm)) == 2


def test_a_snapshot_with_memory_restores_memory(site: Platform, new_vm: NewVm) -> None:
    vm = boot_vm(site, new_vm)
    write_to_disk(site, vm, "before")
    shell(site, vm, "echo kept > /run/word")
    site.cli("snapshot", "create", vm["name"], "whole", "--memory")
    write_to_disk(site, vm, "after")
    shell(site, vm, "echo lost > /run/word")
    site.cli("snapshot", "revert", vm["name"], "whole")
    assert (shell(site, vm, "cat /run/word"), read_from_disk(site, vm)) == ("kept", "before")
    assert count_boots(site, vm) == 1, "it did not boot: it went on from there"
    site.cli("vm", "kill", vm["name"], "--wait")
    refused = site.cli("vm", "migrate", vm["name"], "--to", "host-b" if vm["node"] == "host-a" else "host-a")
    assert refused.returncode == 0, "off, it moves with its snapshots"
    vm = site.client.get("vms", vm["id"])
    assert len(snapshots_in_file(site, vm)) == 1
    site.cli("snapshot", "revert", vm["name"], "whole")
    site.wait_state(vm["id"], "running")
    assert shell(site, vm, "cat /run/word") == "kept", "also where it is now"
    refused = site.cli("vm", "migrate", vm["name"], check=False)
    assert refused.returncode == 4 and "so it can't migrate while it runs" in refused.stderr
    site.cli("snapshot", "delete", vm["name"], "whole")


def test_a_revert_that_fails_leaves_the_guest_as_it_was(
    site: Platform, new_vm: NewVm, new_name: Callable[[], str]
) -> None:
    """Its memory was kept with a volume that the VM has no more. No snapshot contains a volume, and each says so."""
    vm = boot_vm(site, new_vm)
    volume = site.client.create_volume(new_name(), size_mib=8, node=vm["node"])
    site.client.wait("volumes", volume["id"], lambda now: now is not None and now["phase"] == "ready", 30)
    site.client.attach_volume(volume["id"], vm["id"])
    until(lambda: shell(site, vm, "test -b /dev/sda && echo there") == "there", "the guest has its volume", 30)
    write_to_disk(site, vm, "before")
    created = site.cli("snapshot", "create", vm["name"], "whole", "--memory")
    assert f"volumes that the snapshot does not include: {volume['name']}" in created.stderr
    assert volume["name"] in site.cli("snapshot", "list", vm["name"]).stdout
    (snapshot,) = site.client.request("GET", f"/api/v1/vms/{vm['id']}/snapshots")["items"]
    assert snapshot["excluded_volumes"] == [{"id": volume["id"], "name": volume["name"], "lun": 0}]
    assert f"{volume['id']}-device (scsi-hd) at 0" in snapshot["layout"]["devices"]
    assert snapshot["layout"]["memory_mib"] == 128 and snapshot["layout"]["machine"].startswith("pc-")
    site.client.act("volumes", volume["id"], "detach")
    site.client.wait("volumes", volume["id"], lambda now: now is not None and now["vm"] is None, 30)
    write_to_disk(site, vm, "after")
    shell(site, vm, "echo now > /run/word")
    refused = site.cli("snapshot", "revert", vm["name"], "whole", check=False)
    assert refused.returncode == 4 and f"volume {volume['name']} was attached" in refused.stderr
    assert f"attach, in this order, the ones it had: {volume['name']}" in refused.stderr
    assert (shell(site, vm, "cat /run/word"), read_from_disk(site, vm)) == ("now", "after")
    assert count_boots(site, vm) == 1 and len(snapshots_in_file(site, vm)) == 1, "nothing is left of the attempt"
    site.wait_state(vm["id"], "running")
    site.client.attach_volume(volume["id"], vm["id"])
    site.cli("snapshot", "revert", vm["name"], "whole")
    assert read_from_disk(site, vm) == "before", "with its volume it goes back"
    site.client.act("volumes", volume["id"], "detach")
    site.client.wait("volumes", volume["id"], lambda now: now is not None and now["vm"] is None, 30)
    site.client.delete("volumes", volume["id"])


def damage_memory(layer: Path) -> None:
    """Spoil what was kept of a guest's memory in the disk of a VM that is off: some way into it, as rot would."""
    content = layer.read_bytes()
    at = content.index(b"QEVM\0\0\0\3") + (300 << 10)  # how QEMU's stream begins
    with layer.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * (64 << 10))


def test_damaged_memory_changes_neither_a_guest_that_runs_nor_one_that_is_off(site: Platform, new_vm: NewVm) -> None:
    vm = boot_vm(site, new_vm)
    write_to_disk(site, vm, "before")
    site.cli("snapshot", "create", vm["name"], "whole", "--memory")
    (id,) = snapshots_in_file(site, vm)
    write_to_disk(site, vm, "after")
    site.cli("vm", "kill", vm["name"], "--wait")
    layer = directory_of(site, vm) / "disk.qcow2"
    damage_memory(layer)
    subprocess.run(["qemu-img", "snapshot", "-c", "before-other", str(layer)], check=True, capture_output=True)

    failed = site.cli("snapshot", "revert", vm["name"], "whole", check=False)
    assert failed.returncode != 0 and "snapshot whole" in failed.stderr
    assert site.wait_state(vm["id"], "stopped")["status"]["crashes"] == 0, "it was off, and is off"
    assert count_boots(site, vm) == 1

    site.cli("vm", "start", vm["name"], "--wait")
    until(lambda: count_boots(site, vm) == 2 and site.console_log(vm).count("tiny guest: ready") == 2, "it is up", 60)
    assert read_from_disk(site, vm) == "after"
    until(lambda: snapshots_in_file(site, vm) == [id], "what an earlier attempt left is removed", 30)
    shell(site, vm, "echo now > /run/word")
    failed = site.cli("snapshot", "revert", vm["name"], "whole", check=False)
    assert failed.returncode != 0 and "the guest continues as before" in failed.stderr
    assert (shell(site, vm, "cat /run/word"), read_from_disk(site, vm)) == ("now", "after")
    assert snapshots_in_file(site, vm) == [id]


@pytest.mark.slow
def test_a_revert_to_what_is_not_in_the_disk_does_not_end_the_guest(site: Platform, new_vm: NewVm) -> None:
    vm = boot_vm(site, new_vm)
    for name in ("kept", "gone"):
        site.cli("snapshot", "create", vm["name"], name)
    site.cli("vm", "kill", vm["name"], "--wait")
    listed = site.client.request("GET", f"/api/v1/vms/{vm['id']}/snapshots")["items"]
    gone = next(entry["id"] for entry in listed if entry["name"] == "gone")
    layer = directory_of(site, vm) / "disk.qcow2"
    subprocess.run(["qemu-img", "snapshot", "-d", gone, str(layer)], check=True, capture_output=True)
    site.cli("vm", "start", vm["name"], "--wait")
    until(lambda: site.console_log(vm).count("tiny guest: ready") == 2, "it is up", 60)
    boots = count_boots(site, vm)
    refused = site.cli("snapshot", "revert", vm["name"], "gone", check=False)
    assert refused.returncode != 0 and "it is not in the VM's disk" in refused.stderr
    assert count_boots(site, vm) == boots and site.client.get("vms", vm["id"])["status"]["state"] == "running"


@pytest.mark.slow
def test_a_warm_migration_moves_the_guests_snapshots(
    site: Platform, new_vm: NewVm, new_name: Callable[[], str]
) -> None:
    vm = boot_vm(site, new_vm, node="host-a")
    volume = site.client.create_volume(new_name(), size_mib=8, node="host-a")
    site.client.wait("volumes", volume["id"], lambda now: now is not None and now["phase"] == "ready", 30)
    site.client.attach_volume(volume["id"], vm["id"])
    write_to_disk(site, vm, "before")
    shell(site, vm, "echo kept > /run/word; echo volume | dd of=/dev/sda conv=fsync 2>/dev/null; echo done")
    site.cli("snapshot", "create", vm["name"], "whole", "--memory")
    write_to_disk(site, vm, "after")
    shell(site, vm, "echo moved > /run/word; echo done")
    done = json.loads(site.cli("vm", "migrate", vm["name"], "--to", "host-b", "--warm", "-o", "json").stdout)
    assert (done["kind"], done["phase"]) == ("warm", "completed")
    vm = site.wait_state(vm["id"], "running")
    assert (vm["node"], vm["status"]["crashes"]) == ("host-b", 0) and len(snapshots_in_file(site, vm)) == 1
    assert (shell(site, vm, "cat /run/word"), read_from_disk(site, vm)) == ("moved", "after"), "the same guest goes on"
    assert shell(site, vm, "dd if=/dev/sda bs=6 count=1 2>/dev/null") == "volume"
    downtime = site.client.get("migrations", done["id"])["progress"]["downtime_ms"]
    assert downtime is not None and downtime > 0
    site.cli("snapshot", "revert", vm["name"], "whole")
    assert (shell(site, vm, "cat /run/word"), read_from_disk(site, vm)) == ("kept", "before")
    site.cli("snapshot", "delete", vm["name"], "whole")
    site.client.act("volumes", volume["id"], "detach")
    until(lambda: site.client.get("volumes", volume["id"])["vm"] is None, "its volume is detached")
    site.client.delete("volumes", volume["id"])


@pytest.mark.slow
def test_snapshots_that_lack_the_guest_agent_or_disk_they_need_are_refused(
    site: Platform, api: Api, new_vm: NewVm
) -> None:
    vm = boot_vm(site, new_vm)
    answer = api("POST", f"/api/v1/vms/{vm['id']}/snapshots", {"name": "a", "quiesce": True})
    assert answer.problem["field"] == "quiesce" and "the guest agent of VM" in answer.problem["detail"]
    heard = wait_for_guest_agent(site, new_vm(image="agent", cloud_init={}))
    answer = api("POST", f"/api/v1/vms/{heard['id']}/snapshots", {"name": "a"})
    assert answer.status == 409 and "has no disk" in answer.problem["detail"]


@pytest.mark.slow
def test_a_quiesced_snapshot_contains_unflushed_guest_writes(site: Platform, new_vm: NewVm) -> None:
    vm = wait_for_guest_agent(site, new_vm(image="filesystem", cloud_init={}))
    assert shell(site, vm, "echo kept > /data/file && echo done") == "done"
    site.cli("snapshot", "create", vm["name"], "q", "--quiesce")
    assert shell(site, vm, "echo lost > /data/file && sync && echo done") == "done", "it may write again"
    site.cli("snapshot", "revert", vm["name"], "q")
    until(lambda: count_boots(site, vm) == 2, "it has booted from what it was", 60)
    wait_for_guest_agent(site, vm)
    assert shell(site, vm, "cat /data/file") == "kept"
    put_clock_back(site, vm)
    site.cli("snapshot", "create", vm["name"], "memory", "--memory")
    site.cli("snapshot", "revert", vm["name"], "memory")
    until_clock_is_right(site, vm)


def test_invalid_snapshot_requests_are_refused(site: Platform, api: Api, new_vm: NewVm) -> None:
    vm = boot_vm(site, new_vm)
    path = f"/api/v1/vms/{vm['id']}/snapshots"
    for name in ("A", "a,b", "../x", "$(id)"):
        assert api("POST", path, {"name": name}).problem["field"] == "name"
    site.cli("snapshot", "create", vm["name"], "a", "--memory")
    assert api("POST", path, {"name": "a"}).problem["field"] == "name"
    assert api("POST", f"{path}/b/actions/revert").status == 404
    assert api("DELETE", f"{path}/b").status == 404
    site.cli("vm", "kill", vm["name"], "--wait")
    assert api("POST", path, {"name": "b", "memory": True}).problem["field"] == "memory"
    site.cli("vm", "set", vm["name"], "--memory", "192")
    assert (
        "holds the memory of a VM with 1 vCPUs and 128 MiB" in api("POST", f"{path}/a/actions/revert").problem["detail"]
    )


KILLED = {"create": "agent", "revert": "agent", "delete": "server"}
OTHERS = {"create": "server", "revert": "server", "delete": "agent"}


@pytest.mark.parametrize(
    "killed", [KILLED, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=lambda killed: "-".join(killed.values())
)
def test_snapshot_operations_complete_after_a_kill(site: Platform, new_vm: NewVm, killed: dict[str, str]) -> None:
    vm = boot_vm(site, new_vm)
    write_to_disk(site, vm, "before")
    id = site.client.create_snapshot(vm["name"], "a", memory=True)["id"]
    wait_after_kill(site, vm, id, killed["create"])
    assert snapshots_in_file(site, vm) == [id] and read_from_disk(site, vm) == "before"
    write_to_disk(site, vm, "after")
    site.client.revert_snapshot(vm["name"], "a")
    wait_after_kill(site, vm, id, killed["revert"])
    assert snapshots_in_file(site, vm) == [id] and read_from_disk(site, vm) == "before"
    write_to_disk(site, vm, "after")
    site.client.delete_snapshot(vm["name"], "a")
    assert wait_after_kill(site, vm, id, killed["delete"]) is None
    assert snapshots_in_file(site, vm) == [] and read_from_disk(site, vm) == "after"
    assert site.client.get("vms", vm["id"])["status"]["crashes"] == 0


def wait_after_kill(site: Platform, vm: Object, snapshot: str, what: str) -> Object | None:
    """Kill the VM's agent or the server now that something is asked for; wait for what becomes of the snapshot."""
    service = site.agents[vm["node"]] if what == "agent" else site.server
    service.kill()
    service.start()
    site.wait_ready()
    wait_until_node_answers(site, vm)
    done: Object | None = site.client.wait(
        "snapshots", snapshot, lambda now: now is None or now["phase"] in ("ready", "failed"), 60
    )
    assert done is None or done["phase"] == "ready", done
    return done


def test_a_full_disk_pauses_the_vm_that_needs_it_and_no_other(
    site: Platform, new_vm: NewVm, small: Callable[[Path, int], None]
) -> None:
    vm = boot_vm(site, new_vm)
    other = boot_vm(site, new_vm, node=vm["node"])
    site.cli("vm", "kill", vm["name"], "--wait")
    small(directory_of(site, vm), 24)
    site.cli("vm", "start", vm["name"], "--wait")
    until(lambda: site.console_log(vm).count("tiny guest: ready") == 2, "it is up", 60)
    failed = site.cli("snapshot", "create", vm["name"], "whole", "--memory", check=False)
    assert failed.returncode != 0 and "MiB are free on the node" in failed.stderr, "nobody's room is used up"
    with site.client.open_console(vm["id"]) as console:
        console.send(b"\rdd if=/dev/urandom of=/dev/vda bs=1M count=40 conv=fsync,notrunc; echo wrote-$?\r")
        paused = site.wait_state(vm["id"], "paused", 60)
        assert "its disk is full" in paused["status"]["reason"]
        write_to_disk(site, other, "fine")
        subprocess.run(["mount", "-o", "remount,size=256m", str(directory_of(site, vm))], check=True)
        site.wait_state(vm["id"], "running")
        seen = b""
        while b"wrote-0" not in seen:
            seen += console.recv(60)
    assert site.client.get("vms", vm["id"])["status"]["crashes"] == 0
    site.cli("vm", "kill", vm["name"], "--wait")
    subprocess.run(["umount", "-l", str(directory_of(site, vm))], check=True)
