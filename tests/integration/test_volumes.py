"""Volumes: made, attached to guests that run and that do not, grown, limited, moved, detached, and full."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.platform import Platform, until
from tests.integration.conftest import Api
from tests.support.boot_sector import sector
from tests.support.vms import NewVm, Object, boot_vm, read_from_disk, shell, wait_until_node_answers, write_to_disk

Create = Callable[..., Object]
PATH = "/api/v1/volumes"


@pytest.fixture
def volume(site: Platform, new_vm: NewVm, new_name: Callable[[], str]) -> Iterator[Create]:
    """Create volumes; all are detached and deleted afterwards."""
    ids: list[str] = []

    def create(**fields: Any) -> Object:
        begun = site.client.create_volume(new_name(), **{"size_mib": 64, **fields})
        ids.append(begun["id"])
        done = site.client.wait("volumes", begun["id"], lambda now: now is None or now["phase"] != "creating", 20)
        assert done is not None and done["phase"] == "ready", done
        return done

    yield create
    for id in ids:
        created = next((listed for listed in site.client.list("volumes") if listed["id"] == id), None)
        if created is not None and created["vm"] is not None:
            detach(site, created)
        if created is not None:
            site.client.delete("volumes", id)
    until(lambda: not set(ids) & {listed["id"] for listed in site.client.list("volumes")}, "the volumes are gone")


def file_of(site: Platform, volume: Object) -> Path:
    directory = (
        site.shared_pool if volume["kind"] == "shared" else site.directory / volume["node"] / "agent" / "volumes"
    )
    return directory / f"{volume['id']}.raw"


def attach(site: Platform, volume: Object, vm: Object, **how: Any) -> None:
    site.client.attach_volume(volume["id"], vm["id"], **how)


def detach(site: Platform, volume: Object) -> None:
    site.client.act("volumes", volume["id"], "detach")
    site.client.wait("volumes", volume["id"], lambda now: now is None or now["vm"] is None, 20)


def disk_size_mib(site: Platform, vm: Object, disk: str = "sda") -> int:
    """Return how many MiB the guest sees of a disk, 0 if it has none."""
    return int(shell(site, vm, f"cat /sys/block/{disk}/size 2>/dev/null || echo 0")) // 2048


def device_name(site: Platform, vm: Object, volume: Object) -> str:
    """Return what the guest calls a volume: who finds several at its boot gives them names as it comes."""
    look = f"grep -l {volume['id']} /sys/block/sd*/device/vpd_pg80 2>/dev/null"
    device: str = until(lambda: shell(site, vm, f"{look} | cut -d/ -f4"), f"the guest has {volume['name']}")
    return device


def write_text(site: Platform, vm: Object, text: str, disk: str = "sda") -> str:
    return shell(
        site, vm, f"echo {text} | dd of=/dev/{disk} conv=fsync,notrunc bs=4096 2>/dev/null && echo done || echo no"
    )


def read_text(site: Platform, vm: Object, disk: str = "sda") -> str:
    return shell(
        site, vm, f"echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/{disk} bs=4096 count=1 2>/dev/null | head -n 1"
    )


def test_a_volume_moves_from_one_running_guest_to_another(site: Platform, new_vm: NewVm, volume: Create) -> None:
    vm = boot_vm(site, new_vm)
    other = boot_vm(site, new_vm, node=vm["node"])
    data = volume(node=vm["node"])
    assert file_of(site, data).stat().st_size == 64 << 20 and data["used_bytes"] == 0
    assert "attached to" in site.cli("volume", "attach", data["name"], vm["name"]).stdout
    until(lambda: disk_size_mib(site, vm) == 64, "the guest sees it")
    assert shell(site, vm, "cat /sys/block/sda/device/vpd_pg80 | tr -d '\\0' | grep -c " + data["id"]) == "1"
    assert write_text(site, vm, "hello") == "done"
    refused = site.cli("volume", "attach", data["name"], other["name"], check=False)
    assert refused.returncode != 0 and f"is attached to VM {vm['name']}" in refused.stderr
    site.cli("volume", "set", data["name"], "--size", "96")
    until(lambda: disk_size_mib(site, vm) == 96, "it has grown under the guest")
    until(lambda: site.client.get("volumes", data["id"])["used_bytes"] > 0, "its usage is known")
    site.cli("volume", "detach", data["name"])
    assert disk_size_mib(site, vm) == 0
    attach(site, data, other, read_only=True)
    until(lambda: disk_size_mib(site, other) == 96, "the other guest sees it")
    assert read_text(site, other) == "hello" and write_text(site, other, "changed") == "no"
    assert site.client.get("vms", vm["id"])["status"]["crashes"] == 0
    history = site.cli("vm", "history", vm["name"]).stdout
    assert "VolumeAttached" in history and "VolumeDetached" in history


def test_a_volume_is_attached_when_its_vm_starts_and_outlives_the_vm(
    site: Platform, new_vm: NewVm, volume: Create
) -> None:
    vm = boot_vm(site, new_vm)
    site.cli("vm", "kill", vm["name"], "--wait")
    first, second = volume(node=vm["node"]), volume(node=vm["node"], size_mib=32)
    attach(site, first, vm)
    attach(site, second, vm, boot_order=0)
    site.cli("vm", "start", vm["name"], "--wait")
    until(lambda: site.console_log(vm).count("tiny guest: ready") == 2, "it is up", 60)
    names = [device_name(site, vm, each) for each in (first, second)]
    assert [disk_size_mib(site, vm, name) for name in names] == [64, 32]
    write_text(site, vm, "kept", names[0])
    site.cli("vm", "kill", vm["name"], "--wait")
    detach(site, second)
    assert site.client.get("volumes", second["id"])["boot_order"] is None
    site.cli("vm", "delete", vm["name"], "--wait", "--yes")
    assert site.client.get("volumes", first["id"])["vm"] is None
    assert file_of(site, first).read_bytes()[:4] == b"kept"
    site.cli("volume", "delete", first["name"], "--yes")
    assert not file_of(site, first).exists()


def test_discarded_blocks_take_no_space_and_writes_are_limited(site: Platform, new_vm: NewVm, volume: Create) -> None:
    vm = boot_vm(site, new_vm)
    data = volume(node=vm["node"], bytes_per_s=2_000_000)
    attach(site, data, vm)
    until(lambda: disk_size_mib(site, vm) == 64, "the guest sees it")
    started = time.monotonic()
    assert (
        shell(
            site,
            vm,
            "tr '\\0' x </dev/zero | dd iflag=fullblock of=/dev/sda bs=64k count=128 conv=fsync 2>/dev/null; echo ok",
        )
        == "ok"
    )
    assert time.monotonic() - started > 3, "8 MB at 2 MB a second"
    assert file_of(site, data).stat().st_blocks * 512 >= 8 << 20
    site.cli("volume", "set", data["name"], "--throughput", "0")
    until(lambda: site.client.get("volumes", data["id"])["bytes_per_s"] is None, "there is no limit")
    shell(site, vm, "dd if=/dev/zero of=/dev/sda bs=64k count=128 conv=fsync 2>/dev/null; echo ok")
    until(lambda: file_of(site, data).stat().st_blocks == 0, "zeroes take no space")


def test_a_shared_volume_stays_where_it_is_when_its_vm_moves(
    site: Platform, api: Api, new_vm: NewVm, volume: Create
) -> None:
    vm = boot_vm(site, new_vm)
    there = "host-b" if vm["node"] == "host-a" else "host-a"
    shared = volume(pool="nfs")
    attach(site, shared, vm)
    until(lambda: disk_size_mib(site, vm) == 64, "the guest sees it")
    write_text(site, vm, "one")
    site.cli("vm", "migrate", vm["name"], "--to", there)
    assert read_text(site, vm) == "one" and write_text(site, vm, "two") == "done"
    detach(site, shared)
    assert disk_size_mib(site, vm) == 0
    attach(site, shared, vm)
    until(lambda: disk_size_mib(site, vm) == 64, "the guest sees it again")
    assert read_text(site, vm) == "two"
    elsewhere = volume(node=vm["node"])
    answer = api("POST", f"{PATH}/{elsewhere['id']}/actions/attach", {"vm": vm["id"]})
    assert answer.status == 409 and "is on node" in answer.problem["detail"]


def migrate(site: Platform, vm: Object, to: str) -> None:
    site.cli("vm", "migrate", vm["name"], "--to", to)
    now = site.client.get("vms", vm["id"])
    assert now["node"] == to, now
    vm["node"] = to


def files_of(site: Platform, volume: Object) -> list[str]:
    """Return on which hosts there is a file of a local volume."""
    pool = "agent/volumes" if volume["pool"] == "local" else "small"
    hosts = [host.name for host in site.lab.hosts]
    return [name for name in hosts if (site.directory / name / pool / f"{volume['id']}.raw").exists()]


def test_local_volumes_move_with_their_vm_running_and_not(site: Platform, new_vm: NewVm, volume: Create) -> None:
    vm = boot_vm(site, new_vm, node="host-a")
    first, second = volume(node="host-a"), volume(node="host-a", pool="small", size_mib=32)
    for each, disk, size in ((first, "sda", 64), (second, "sdb", 32)):
        attach(site, each, vm)
        until(lambda disk=disk, size=size: disk_size_mib(site, vm, disk) == size, "the guest sees it")  # type: ignore[misc]
    assert write_text(site, vm, "one") == "done" and write_text(site, vm, "two", "sdb") == "done"
    write_to_disk(site, vm, "own")
    migrate(site, vm, "host-b")
    assert (read_text(site, vm), read_text(site, vm, "sdb"), read_from_disk(site, vm)) == ("one", "two", "own")
    assert write_text(site, vm, "three") == "done"
    assert {site.client.get("volumes", each["id"])["node"] for each in (first, second)} == {"host-b"}
    until(lambda: files_of(site, first) == files_of(site, second) == ["host-b"], "nothing of them is left behind")
    migrate(site, vm, "host-a")
    assert (read_text(site, vm), read_text(site, vm, "sdb")) == ("three", "two")
    site.cli("vm", "kill", vm["name"], "--wait")
    until(lambda: files_of(site, first) == ["host-a"], "nothing is left behind")
    migrate(site, vm, "host-b")
    site.cli("vm", "start", vm["name"], "--wait")
    until(lambda: "tiny guest: ready" in site.console_log(vm), "it is up", 60)
    names = [device_name(site, vm, each) for each in (first, second)]
    assert (*(read_text(site, vm, name) for name in names), read_from_disk(site, vm)) == ("three", "two", "own")
    until(lambda: files_of(site, first) == files_of(site, second) == ["host-b"], "nothing is left behind")
    assert site.client.get("vms", vm["id"])["status"]["crashes"] == 0


@pytest.mark.parametrize("what", ["target", pytest.param("source", marks=pytest.mark.slow)])
def test_a_failed_migration_leaves_volumes_where_they_were(
    site: Platform, new_vm: NewVm, volume: Create, what: str
) -> None:
    vm = boot_vm(site, new_vm, node="host-a")
    data = volume(node="host-a", size_mib=256)
    attach(site, data, vm)
    until(lambda: disk_size_mib(site, vm) == 256, "the guest sees it")
    write_text(site, vm, "here")
    shell(site, vm, "dd if=/dev/urandom of=/dev/sda bs=1M seek=1 count=100 conv=fsync 2>/dev/null; echo written")
    site.client.configure_node("host-a", migration_rate_bytes_per_s=2_500_000)
    begun = site.client.act("vms", vm["id"], "migrate", {"target": "host-b"})
    until(lambda: site.client.get("migrations", begun["id"])["progress"]["wire_bytes"] > 2**20, "it is on its way", 60)
    assert files_of(site, data) == ["host-a", "host-b"]
    agent = site.agents["host-b" if what == "target" else "host-a"]
    agent.kill()
    agent.start()
    done = site.client.wait("migrations", begun["id"], lambda now: now is None or now["finished_at"] is not None, 120)
    assert done is not None and done["phase"] == "failed", done
    site.client.configure_node("host-a", migration_rate_bytes_per_s=None)
    wait_until_node_answers(site, vm)
    assert read_text(site, vm) == "here" and site.client.get("volumes", data["id"])["node"] == "host-a"
    until(lambda: files_of(site, data) == ["host-a"], "nothing of it is left at the target", 60)


def test_a_target_without_the_pool_or_enough_space_is_refused_early(
    site: Platform, new_vm: NewVm, volume: Create
) -> None:
    vm = new_vm(image="tiny", node="host-a", power="stopped")
    site.wait_state(vm["id"], "stopped")
    data = volume(node="host-a")
    attach(site, data, vm)
    verdicts = {verdict["node"]: verdict["refusal"] for verdict in site.client.placement(vm["id"])}
    assert verdicts["host-b"] is None
    assert "is on node host-a already" in verdicts["host-a"]


def test_invalid_volumes_and_attachments_are_refused(site: Platform, api: Api, new_vm: NewVm, volume: Create) -> None:
    data = volume()
    for body, field in (
        ({"name": "A", "size_mib": 1}, "name"),
        ({"name": "a,b", "size_mib": 1}, "name"),
        ({"name": data["name"], "size_mib": 1}, "name"),
        ({"name": "x", "size_mib": 0}, "size_mib"),
        ({"name": "x", "size_mib": 1, "pool": "none"}, "pool"),
        ({"name": "x", "size_mib": 1, "node": "none"}, "node"),
        ({"name": "x", "size_mib": 1 << 24}, "size_mib"),
    ):
        assert api("POST", PATH, body).problem["field"] == field, body
    assert api("PATCH", f"{PATH}/{data['id']}", {"size_mib": 1}).problem["field"] == "size_mib"
    assert api("POST", f"{PATH}/{data['id']}/actions/attach", {"vm": "none"}).problem["field"] == "vm"
    assert api("POST", f"{PATH}/{data['id']}/actions/detach").status == 409
    assert api("DELETE", f"{PATH}/none").status == 404
    pools = {(pool["name"], pool["node"]) for pool in site.client.list("pools")}
    assert pools >= {("local", "host-a"), ("local", "host-b"), ("nfs", "host-a"), ("nfs", "host-b")}


@pytest.mark.parametrize("what", ["agent", pytest.param("server", marks=pytest.mark.slow)])
def test_volume_operations_survive_a_kill(site: Platform, new_vm: NewVm, volume: Create, what: str) -> None:
    vm = boot_vm(site, new_vm)
    service = site.agents[vm["node"]] if what == "agent" else site.server

    def kill() -> None:
        service.kill()
        service.start()
        site.wait_ready()
        wait_until_node_answers(site, vm)

    begun = site.client.create_volume(f"killed-{what}", size_mib=64, node=vm["node"])
    kill()
    try:
        until(lambda: site.client.get("volumes", begun["id"])["phase"] == "ready", "it is made")
        attach(site, begun, vm)
        kill()
        until(lambda: disk_size_mib(site, vm) == 64, "the guest sees it")
        write_text(site, vm, "here")
        site.client.configure_volume(begun["id"], size_mib=80)
        kill()
        until(lambda: disk_size_mib(site, vm) == 80, "it has grown")
        site.client.act("volumes", begun["id"], "detach")
        kill()
        until(lambda: site.client.get("volumes", begun["id"])["vm"] is None, "it is detached")
        assert disk_size_mib(site, vm) == 0
        size = site.client.get("images", "disk")["disk_bytes"] >> 20
        assert disk_size_mib(site, vm, "vda") == size
        site.client.configure_vm(vm["id"], disk_mib=size + 8)
        kill()
        until(lambda: disk_size_mib(site, vm, "vda") == size + 8, "its own disk has grown")
    finally:
        if site.client.get("volumes", begun["id"])["vm"] is None:
            site.client.delete("volumes", begun["id"])
            kill()
    until(lambda: all(listed["id"] != begun["id"] for listed in site.client.list("volumes")), "it is gone")
    assert not file_of(site, begun).exists()
    assert site.client.get("vms", vm["id"])["status"]["crashes"] == 0


@pytest.mark.slow
def test_a_full_pool_pauses_the_vm_that_writes_to_it_and_no_other(
    site: Platform, api: Api, new_vm: NewVm, volume: Create
) -> None:
    vm = boot_vm(site, new_vm)
    other = boot_vm(site, new_vm, node=vm["node"])
    small = site.directory / vm["node"] / "small"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", str(small)], check=True)
    try:
        node = vm["node"]
        until(lambda: any(p["bytes_total"] == 192 << 20 for p in site.client.list("pools")), "the pool is seen", 20)
        answer = api("POST", PATH, {"name": "large", "size_mib": 512, "pool": "small", "node": node})
        assert answer.problem["field"] == "size_mib" and "192 MiB free" in answer.problem["detail"]
        data = volume(pool="small", node=node, size_mib=128)
        ballast = small / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 160 << 20)
        attach(site, data, vm)
        until(lambda: disk_size_mib(site, vm) == 128, "the guest sees it")
        with site.client.open_console(vm["id"]) as console:
            console.send(
                b"\rtr '\\0' x </dev/zero | dd iflag=fullblock of=/dev/sda bs=1M count=60 conv=fsync; echo wrote-$?\r"
            )
            paused = site.wait_state(vm["id"], "paused", 60)
            assert "pool small is full" in paused["status"]["reason"]
            write_to_disk(site, other, "fine")
            ballast.unlink()
            site.wait_state(vm["id"], "running")
            seen = b""
            while b"wrote-0" not in seen:
                seen += console.recv(60)
        assert site.client.get("vms", vm["id"])["status"]["crashes"] == 0
        detach(site, data)
        site.cli("volume", "delete", data["name"], "--yes")
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_guest_boots_from_the_volume_that_comes_first(
    site: Platform, new_vm: NewVm, new_name: Callable[[], str], volume: Create, tmp_path: Path
) -> None:
    file, image = tmp_path / "disk.raw", new_name()
    file.write_bytes(sector("from its disk").ljust(1 << 20, b"\0"))
    site.client.import_image(image, file)
    until(lambda: any(listed["name"] == image for listed in site.client.list("images")), "the image is there")
    vm = new_vm(image=image, power="stopped")
    vm = until(lambda: (now := site.client.get("vms", vm["id"]))["node"] and now, "it is placed")
    data = volume(node=vm["node"])
    with file_of(site, data).open("r+b") as opened:
        opened.write(sector("from the volume"))
    attach(site, data, vm, boot_order=0)
    site.cli("vm", "start", vm["name"], "--wait")
    until(lambda: "from the volume" in site.console_log(vm), "it boots from the volume")
    site.cli("volume", "detach", data["name"])
    site.cli("vm", "reset", vm["name"])
    until(lambda: "from its disk" in site.console_log(vm), "it boots from its disk")
    site.cli("vm", "delete", vm["name"], "--wait", "--yes")
    site.client.delete_image(image)
