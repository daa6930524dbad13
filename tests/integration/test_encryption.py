"""Encryption at rest: what guests write is on no disk in the clear, and is gone with the key."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from lab.platform import Platform, until
from novacron.client import ApiError
from novacron.disk import luks
from tests.support import boot_sector, iso
from tests.support.plain import files_with
from tests.support.vms import NewVm, boot_vm, directory_of, read_from_disk, shell, wait_until_booted, write_to_disk

Object = dict[str, Any]
SIZE = "cat /sys/block/sda/size 2>/dev/null"


@contextlib.contextmanager
def encrypting(site: Platform, project: str = "default") -> Iterator[str]:
    """Encrypt what a project creates while the block runs; yield the key's id."""
    site.cli("project", "set", project, "--encryption", "on")
    try:
        yield site.client.get("projects", project)["encryption_key"]
    finally:
        site.client.configure_project(project, encryption=False)


def switch_off(site: Platform, vm: Object) -> None:
    site.client.act("vms", vm["id"], "stop", {"timeout_s": 0})
    site.wait_state(vm["id"], "stopped")


def stored_seed(site: Platform, vm: Object) -> str:
    """Return what the database has of a VM's first-boot data."""

    async def read() -> str:
        connection = await asyncpg.connect(site.postgres.url)
        try:
            return str(await connection.fetchval("SELECT seed::text FROM vm_seeds WHERE vm = $1", vm["id"]))
        finally:
            await connection.close()

    return asyncio.run(read())


def seen_by_qemu(site: Platform, vm: Object, name: str) -> bytes:
    """Return a file in memory that a VM's QEMU has open."""
    pid = site.qemus()[f"{vm['node']}/{vm['id']}"]
    found = [entry for entry in Path(f"/proc/{pid}/fd").iterdir() if f"memfd:{name}" in str(entry.readlink())]
    return found[0].read_bytes()


def until_failed(site: Platform, vm: str, why: str) -> None:
    site.wait_vm(vm, lambda now: now["status"]["state"] == "failed" and why in now["status"]["reason"], why, 60)


def test_nothing_of_an_encrypted_vm_is_in_the_clear_and_its_disk_is_gone_with_the_key(
    site: Platform, new_vm: NewVm
) -> None:
    plain = new_vm(image="disk", cloud_init={"user_data": "#! seed of the plain one\n"}, node="host-a")
    with encrypting(site) as key:
        said = site.cli("project", "set", "default", "--encryption", "on").stderr
        assert "warning: not encrypted: VMs " in said and plain["name"] in said
        seed = {"user_data": "#! seed of the encrypted one\n"}
        vm = new_vm(image="disk", cloud_init=seed, node="host-a")
        disk = site.client.create_volume(f"{vm['name']}-data", size_mib=16, node="host-a")
    for each in (plain, vm):
        wait_until_booted(site, each)
    plain, vm = (site.client.get("vms", each["id"]) for each in (plain, vm))
    assert (plain["spec"]["encryption_key"], vm["spec"]["encryption_key"]) == ("", key)
    until(lambda: site.client.get("volumes", disk["id"])["phase"] == "ready", "the volume is made", 60)
    site.client.attach_volume(disk["id"], vm["id"])
    for each in (plain, vm):
        write_to_disk(site, each, 'MAR""KER-of-the-guest')  # typed so, it is not in what the console shows
        shell(site, each, 'echo MAR""KER-on-the-console')
    until(lambda: shell(site, vm, SIZE) == "32768", "the guest sees the volume", 60)
    shell(site, vm, 'echo MAR""KER-of-the-volume | dd of=/dev/sda conv=fsync 2>/dev/null; echo done')
    with pytest.raises(ApiError, match="QEMU can't write memory into such a disk"):
        site.client.create_snapshot(vm["id"], "with-memory", True)
    with pytest.raises(ApiError, match="its export would not be"):
        site.client.request("POST", f"/api/v1/vms/{vm['id']}/actions/export")
    snapshot = site.client.create_snapshot(vm["id"], "first")
    until(lambda: site.client.get("snapshots", snapshot["id"])["phase"] == "ready", "there is a snapshot")

    assert "seed of the plain one" in stored_seed(site, plain)
    assert "sealed" in stored_seed(site, vm) and "seed of the" not in stored_seed(site, vm)
    assert b"seed of the encrypted one" in seen_by_qemu(site, vm, "seed.iso")
    root = site.directory / vm["node"] / "agent"
    assert files_with(directory_of(site, plain), b"MARKER-of-the-guest") == {"disk.qcow2"}, "this test sees markers"
    assert files_with(directory_of(site, plain), b"seed of the plain one") == {"seed.iso"}
    assert files_with(directory_of(site, plain), b"MARKER-on-the-console") == {"console.log"}
    until(lambda: (directory_of(site, vm) / "console.log.encrypted").exists(), "its console log is on the disk")
    assert "MARKER-on-the-console" in site.console_log(vm)
    assert files_with(directory_of(site, vm), b"MARKER-") == set()
    assert files_with(root, b"MARKER-of-the-volume") == files_with(root, b"seed of the encrypted one") == set()

    switch_off(site, vm)
    site.client.configure_vm(vm["id"], cloud_init={"user_data": "#! another seed of it\n"})
    assert "another" not in stored_seed(site, vm)
    site.client.act("vms", vm["id"], "start")
    until(lambda: site.console_log(vm).count("tiny guest: ready") == 2, "it has booted again", 60)
    assert b"another seed of it" in seen_by_qemu(site, vm, "seed.iso")
    assert read_from_disk(site, vm) == "MARKER-of-the-guest"

    with pytest.raises(ApiError, match=f"are running or starting with this key: {vm['name']}"):
        site.client.erase_project_key("default")
    switch_off(site, vm)
    erased = site.client.erase_project_key("default")
    assert (erased["id"], erased["vms"], erased["volumes"]) == (key, [vm["name"]], [disk["name"]])

    def is_recorded() -> bool:  # the refusal before may be recorded a moment later
        records = site.client.list("audit", action="erase_project_key")
        return any((record["outcome"], record["object"]) == ("done", key) for record in records)

    until(is_recorded, "it is in the audit log")
    site.client.act("vms", vm["id"], "start")
    until_failed(site, vm["id"], f"its disk is encrypted with {key}")
    with pytest.raises(ApiError, match="its console log is encrypted, and its node does not have the key"):
        site.client.console_log(vm["id"])
    opened = subprocess.run(
        ["qemu-img", "convert", "-O", "raw", str(directory_of(site, vm) / "disk.qcow2"), "/dev/null"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert opened.returncode and "encrypt" in opened.stderr
    switch_off(site, vm)
    site.client.delete("vms", vm["id"])
    until(lambda: site.client.get("volumes", disk["id"])["vm"] is None, "the volume is free")
    site.client.delete("volumes", disk["id"])


def move(site: Platform, vm: Object, target: str, *options: str) -> Object:
    site.cli("vm", "migrate", vm["name"], "--to", target, *options)
    return site.wait_vm(vm["id"], lambda now: now["node"] == target and now["migration"] is None, "it has moved", 60)


@pytest.mark.slow
def test_encrypted_disks_are_cloned_moved_grown_and_put_back_like_others(
    site: Platform, new_vm: NewVm, new_name: Callable[[], str]
) -> None:
    with encrypting(site) as key:
        vm = boot_vm(site, new_vm, node="host-a")
        disk = site.client.create_volume(f"{vm['name']}-data", size_mib=16, node="host-a")
    until(lambda: site.client.get("volumes", disk["id"])["phase"] == "ready", "the volume is made", 60)
    write_to_disk(site, vm, 'MAR""KER-first')
    clones = [site.client.clone_vm(vm["id"], new_name(), linked=linked) for linked in (True, False)]
    try:
        for clone in clones:
            wait_until_booted(site, clone)
            clone = site.client.get("vms", clone["id"])
            assert clone["spec"]["encryption_key"] == key and read_from_disk(site, clone) == "MARKER-first"
            assert files_with(directory_of(site, clone), b"MARKER-first") == set()
        site.client.attach_volume(disk["id"], vm["id"])
        until(lambda: shell(site, vm, SIZE) == "32768", "the guest sees the volume", 60)
        shell(site, vm, 'echo MAR""KER-of-the-volume | dd of=/dev/sda conv=fsync 2>/dev/null; echo done')
        site.cli("volume", "set", disk["name"], "--size", "32")
        until(lambda: shell(site, vm, SIZE) == "65536", "the guest sees the volume grow", 60)
        vm = move(site, vm, "host-b")
        assert read_from_disk(site, vm) == "MARKER-first"
        assert shell(site, vm, "head -c 20 /dev/sda | head -n 1") == "MARKER-of-the-volume"
        site.cli("snapshot", "create", vm["name"], "one")
        write_to_disk(site, vm, 'MAR""KER-second')
        site.cli("vm", "kill", vm["name"], "--wait")
        site.cli("snapshot", "create", vm["name"], "two")
        site.cli("snapshot", "revert", vm["name"], "one")
        vm = move(site, vm, "host-a")
        site.cli("vm", "start", vm["name"], "--wait")
        wait_until_booted(site, vm)
        assert read_from_disk(site, vm) == "MARKER-first"
        vm = move(site, vm, "host-b", "--warm")
        assert shell(site, vm, "head -c 20 /dev/sda | head -n 1") == "MARKER-of-the-volume"
        for host in ("host-a", "host-b"):
            assert files_with(site.directory / host / "agent", b"MARKER-") == set()
    finally:
        for clone in clones:
            site.cli("vm", "delete", clone["name"], "--wait", "--yes")
        site.cli("vm", "kill", vm["name"], "--wait")
        site.cli("volume", "detach", disk["name"])
        site.cli("volume", "delete", disk["name"], "--yes")


@pytest.mark.slow
def test_what_a_tpm_of_an_encrypted_vm_remembers_needs_the_key(site: Platform, new_vm: NewVm, tmp_path: Path) -> None:
    states = {}
    with encrypting(site):
        sealed = new_vm(image="disk", tpm=True, node="host-a")
    for vm in (sealed, new_vm(image="disk", tpm=True, node="host-a")):
        wait_until_booted(site, vm)
        site.cli("vm", "kill", vm["name"], "--wait")
        site.cli("vm", "start", vm["name"], "--wait")  # its TPM reads its state again
        now = site.wait_state(vm["id"], "running")
        site.cli("vm", "kill", vm["name"], "--wait")
        directory = tmp_path / vm["name"]
        directory.mkdir()
        shutil.copyfile(directory_of(site, now) / "tpm/tpm2-00.permall", directory / "tpm2-00.permall")
        tried = subprocess.run(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={directory}", "--flags", "not-need-init,startup-clear",
             "--server", "type=unixio,path=server.sock", "--ctrl", "type=unixio,path=ctrl.sock", "--terminate",
             "--pid", "file=pid", "--daemon"],
            cwd=directory, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        if (directory / "pid").exists():
            os.kill(int((directory / "pid").read_text()), signal.SIGKILL)
        states[vm["name"]] = tried.returncode
    assert states[sealed["name"]] != 0 and list(states.values()).count(0) == 1


def until_printed(site: Platform, vm: Object, text: str) -> None:
    until(lambda: text in site.console_log(site.client.get("vms", vm["id"])), f"it prints {text}", 300)


VARIABLE = """#! hostile
mkdir -p /vars; mount -t efivarfs none /vars
printf '\\007\\000\\000\\000MAR%sKER-of-the-firmware' "" > /vars/Marker-5f0ac0de-0000-4000-8000-6e6f7661766d
echo "variable: $(tail -c +5 /vars/Marker-5f0ac0de-0000-4000-8000-6e6f7661766d)" > /dev/console
"""


@pytest.mark.slow
def test_variables_of_an_encrypted_vms_firmware_are_encrypted_and_move_with_it(site: Platform, new_vm: NewVm) -> None:
    guest = {"image": "agent", "firmware": "uefi", "memory_mib": 256, "node": "host-a"}
    plain = new_vm(**guest, cloud_init={"user_data": VARIABLE})
    with encrypting(site):
        vm = new_vm(**guest, cloud_init={"user_data": VARIABLE})
    written = "variable: MARKER-of-the-firmware"
    for each in (plain, vm):
        until_printed(site, each, written)
    plain, vm = (site.client.get("vms", each["id"]) for each in (plain, vm))
    assert files_with(directory_of(site, plain), b"MARKER-of-the-firmware") == {"nvram.fd", "console.log"}
    assert files_with(directory_of(site, vm), b"MARKER-") == set()
    kept = (directory_of(site, vm) / "nvram.fd").read_bytes()
    assert kept.startswith(luks.MAGIC)
    vm = move(site, vm, "host-b")  # what it has in memory is written there anew
    switch_off(site, vm)
    vm = move(site, vm, "host-a")
    site.cli("vm", "start", vm["name"], "--wait")
    until_printed(site, vm, written)
    for host in ("host-a", "host-b"):
        vms = site.directory / host / "agent" / "vms" / str(vm["id"])
        assert files_with(vms, b"MARKER-") == set()


def import_private(site: Platform, name: str, content: bytes, format: str, directory: Path) -> None:
    """Import an image that is the default project's own, to host-a."""
    file = directory / name
    file.write_bytes(content)
    begun = site.client.import_image(name, file, format=format, node="host-a", shared=False)
    ended = site.client.wait("imports", begun["id"], lambda now: now is None or now["finished_at"] is not None, 120)
    assert ended is not None and ended["phase"] == "done", ended


@pytest.mark.slow
def test_private_images_of_an_encrypting_project_are_encrypted_on_every_node(
    site: Platform, new_vm: NewVm, new_name: Callable[[], str], tmp_path: Path
) -> None:
    disk, cd, kernel, initrd = (f"{new_name()}-{kind}" for kind in ("disk", "cd", "kernel", "initrd"))
    marker = b"MARKER-of-the-image".ljust(4096, b"\0")
    tiny = site.directory / "host-a" / "images" / "tiny"
    (vmlinuz,), (ram_disk,) = tiny.glob("vmlinuz*"), tiny.glob("initrd*")
    with encrypting(site) as key:
        import_private(site, disk, boot_sector.sector("booted disk").ljust(1 << 20, b"\0") + marker, "raw", tmp_path)
        import_private(site, cd, iso.bootable("booted cd").ljust(1 << 20, b"\0") + marker, "iso", tmp_path)
        import_private(site, kernel, vmlinuz.read_bytes(), "boot-file", tmp_path)
        import_private(site, initrd, ram_disk.read_bytes() + marker, "boot-file", tmp_path)
        assert site.client.get("images", disk)["encryption_key"] == key
        assert site.client.get("images", "tiny")["encryption_key"] == ""
        vm = new_vm(image=disk, cdroms=[{"iso": None}], node="host-b")
        until_printed(site, vm, "booted disk")
        volume = site.client.create_volume(f"{disk}-volume", size_mib=16, node="host-a", image=disk)
        until(lambda: site.client.get("volumes", volume["id"])["phase"] == "ready", "the volume is made", 120)
    plain = new_vm(
        image="blank", disk_mib=16, kernel=kernel, initrd=initrd, kernel_arguments="console=ttyS0 said=by-me"
    )
    assert site.client.get("vms", plain["id"])["spec"]["encryption_key"] == "", "its own disk is not encrypted"
    until_printed(site, plain, "said=by-me")
    site.cli("vm", "insert", vm["name"], cd)
    site.cli("vm", "set", vm["name"], "--boot-once", "cdrom")
    switch_off(site, vm)
    site.cli("vm", "start", vm["name"], "--wait")
    until_printed(site, vm, "booted cd")
    vm = move(site, vm, "host-a")
    for host in ("host-a", "host-b"):
        assert files_with(site.directory / host, b"MARKER-of-the-image") == set()
    refused = site.cli("image", "move-to-project", disk, check=False)
    assert "encrypted with its project's key" in refused.stderr, refused
    for each in (vm, plain):
        switch_off(site, each)
    erased = site.client.erase_project_key("default")
    assert set(erased["images"]) >= {disk, cd, kernel, initrd} and set(erased["vms"]) >= {vm["name"], plain["name"]}
    for each, image in ((vm, "its disk"), (plain, f"image {kernel}")):
        site.client.act("vms", each["id"], "start")
        until_failed(site, each["id"], f"{image} is encrypted with {key}")
        switch_off(site, each)
        site.cli("vm", "delete", each["name"], "--wait", "--yes")
    site.client.delete("volumes", volume["id"])
    for image in (disk, cd, kernel, initrd):
        site.client.delete_image(image)
