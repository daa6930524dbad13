"""Devices that a VM's user chooses: CDs, buses, models, boot order, and what becomes of them when it moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.platform import Platform, until
from novacron.client import Client
from novacron.client.errors import ApiError
from tests.support import boot_sector, iso

NewVm = Callable[..., dict[str, Any]]
BOOT_S = 90.0


@pytest.fixture(scope="module")
def cds(site: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Two CDs on both nodes, each of which says its name when a guest boots from it."""
    names = ("cd-one", "cd-two")
    for name in names:
        file = tmp_path_factory.mktemp("isos") / f"{name}.iso"
        file.write_bytes(iso.bootable(f"booted {name}"))
        site.cli("image", "import", name, str(file), "--format", "iso", "--node", "host-a")
        site.cli("image", "copy", name, "host-b")
    yield names
    for name in names:
        site.cli("image", "delete", name)


@pytest.fixture(scope="module")
def sector_image(site: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image whose disk says that a guest booted from it."""
    file = tmp_path_factory.mktemp("disks") / "disk.raw"
    file.write_bytes(boot_sector.sector("booted disk").ljust(1 << 20, b"\0"))
    site.cli("image", "import", "sector", str(file), "--node", "host-a")
    site.cli("image", "copy", "sector", "host-b")
    yield "sector"
    site.cli("image", "delete", "sector")


@pytest.fixture(scope="module")
def own_kernel(site: Platform) -> Iterator[tuple[str, str]]:
    """The kernel and the initial RAM disk of an image, as files of their own."""
    tiny = site.directory / "host-a" / "images" / "tiny"
    for name, file in (("my-kernel", "vmlinuz"), ("my-initrd", "initrd")):
        (path,) = tiny.glob(f"{file}*")
        site.cli("image", "import", name, str(path), "--format", "boot-file", "--node", "host-a")
    yield "my-kernel", "my-initrd"
    for name in ("my-kernel", "my-initrd"):
        site.cli("image", "delete", name)


def says(site: Platform, vm: dict[str, Any], text: str, times: int = 1) -> None:
    until(lambda: site.console_log(site.client.get("vms", vm["id"])).count(text) >= times, f"{text} x{times}", BOOT_S)


def crash(site: Platform, vm: dict[str, Any]) -> None:
    """Kill a VM's QEMU; its node starts it again."""
    site.wait_state(vm["id"], "running")
    site.kill_qemu(vm)


def holds(site: Platform, vm: dict[str, Any], *isos: str | None) -> None:
    def look() -> bool:
        now = site.client.get("vms", vm["id"])
        return [drive["iso"] for drive in now["spec"]["cdroms"]] == list(isos) and not now["status"]["reason"]

    until(look, f"its drives hold {isos}")


def test_a_vm_without_an_image_boots_a_cd_which_changes_while_it_runs_and_moves(
    site: Platform, new_vm: NewVm, cds: tuple[str, str]
) -> None:
    vm = new_vm(
        image="blank", memory_mib=128, disk_mib=64, disk_bus="sata", nic_model="e1000", node="host-a",
        cdroms=[{"iso": cds[0]}, {"iso": None}],
    )  # fmt: skip
    says(site, vm, "booted cd-one")
    site.cli("vm", "insert", vm["name"], cds[1])
    site.cli("vm", "reset", vm["name"])
    says(site, vm, "booted cd-two")
    with pytest.raises(ApiError, match="VMs were created from image cd-two"):
        site.client.delete("images", cds[1])
    site.cli("vm", "migrate", vm["name"], "--to", "host-b")
    assert site.wait_state(vm["id"], "running")["node"] == "host-b"
    site.cli("vm", "eject", vm["name"])
    holds(site, vm, None, None)
    site.cli("vm", "insert", vm["name"], cds[0], "--drive", "2")
    holds(site, vm, None, cds[0])
    site.cli("vm", "reset", vm["name"])
    says(site, vm, "booted cd-one")


@pytest.mark.slow
def test_boot_once_holds_for_one_start_and_not_for_the_reboot_after_it(
    site: Platform, new_vm: NewVm, cds: tuple[str, str], sector_image: str
) -> None:
    vm = new_vm(image=sector_image, cdroms=[{"iso": cds[0]}], boot_once="cdrom", disk_bus="scsi", node="host-a")
    says(site, vm, "booted cd-one")
    crash(site, vm)
    says(site, vm, "booted disk")
    site.cli("vm", "kill", vm["name"], "--wait")
    site.cli("vm", "start", vm["name"], "--wait")
    says(site, vm, "booted disk", 2)
    site.cli("vm", "set", vm["name"], "--boot-once", "cdrom")
    site.cli("vm", "kill", vm["name"], "--wait")
    site.cli("vm", "set", vm["name"], "--disk-bus", "ide", "--nic-model", "rtl8139", "--network-boot-order", "9")
    site.cli("vm", "start", vm["name"], "--wait")
    says(site, vm, "booted cd-one", 2)
    site.cli("vm", "reset", vm["name"])
    says(site, vm, "booted disk", 3)
    site.cli("vm", "migrate", vm["name"], "--to", "host-b")
    crash(site, vm)
    says(site, vm, "booted disk")
    assert "booted cd-one" not in site.console_log(site.client.get("vms", vm["id"]))


@pytest.mark.slow
def test_a_vm_boots_a_kernel_that_was_uploaded(site: Platform, new_vm: NewVm, own_kernel: tuple[str, str]) -> None:
    kernel, initrd = own_kernel
    vm = new_vm(
        image="blank", kernel=kernel, initrd=initrd, kernel_arguments="console=ttyS0 said=by-me", node="host-a",
        smbios_manufacturer="Shop (1)", smbios_serial="A-7", smbios_asset_tag="T#9",
    )  # fmt: skip
    says(site, vm, "said=by-me")
    says(site, vm, "DMI: Shop (1)")
    site.wait_state(vm["id"], "running")


@pytest.mark.parametrize(
    ("fields", "field", "why"),
    [
        ({"cdroms": [{"iso": "no-such"}]}, "cdroms", "no node holds iso 'no-such'"),
        ({"cdroms": [{"iso": "tiny"}]}, "cdroms", "of kind kernel, not iso"),
        ({"cdroms": [{"iso": "../tiny"}]}, "cdroms", "must have 1 to 63"),
        ({"image": "cd-one"}, "image", "of kind iso"),
        ({"kernel": "cd-one"}, "kernel", "of kind iso, not boot-file"),
        ({"initrd": "cd-one"}, "initrd", "does not boot a kernel"),
        ({"boot_once": "cdrom"}, "boot_once", "no CD-ROM drive"),
        ({"boot_once": "network"}, "boot_once", "not in the boot order"),
        ({"disk_bus": "ide", "firmware": "uefi"}, "disk_bus", "no IDE"),
    ],
)
def test_devices_that_make_no_sense_are_refused_by_field(
    site: Platform, cds: tuple[str, str], fields: dict[str, Any], field: str, why: str
) -> None:
    with pytest.raises(ApiError, match=why) as caught:
        site.client.create_vm(name="never", memory_mib=128, **{"image": "tiny", **fields})
    assert field in str(caught.value.problem.get("field", "")), caught.value.problem


def test_an_iso_of_another_project_is_as_unknown_as_one_that_does_not_exist(
    site: Platform, new_vm: NewVm, tmp_path: Path
) -> None:
    file = tmp_path / "secret.iso"
    file.write_bytes(iso.bootable("secret"))
    site.client.create_project("cd-others")
    user = site.client.create_user("cd-other", kind="service")
    site.client.grant(user["id"], "member", "cd-others")
    token = site.client.create_token("t", user=user["id"])["secret"]
    try:
        with Client(site.client.config._replace(token=token, project="cd-others")) as other:
            begun = other.import_image("secret-cd", file, format="iso")
            until(lambda: other.get("imports", begun["id"])["phase"] == "done", "the ISO is there")
        until(lambda: any(image["name"] == "secret-cd" for image in site.client.list("images")), "it is listed")
        vm = new_vm(image="blank", cdroms=[{}], power="stopped")
        for attempt in ("secret-cd", "no-such"):
            with pytest.raises(ApiError, match=f"no node holds iso '{attempt}' for project default"):
                site.client.configure_vm(vm["id"], cdroms=[{"iso": attempt}])
        site.cli("image", "delete", "secret-cd")
    finally:
        site.client.delete("users", user["id"])
        site.client.delete("projects", "cd-others")


@pytest.mark.slow
@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_a_vm_begins_with_several_disks_on_several_buses_which_move_and_end_with_it(
    site: Platform, new_vm: NewVm, cds: tuple[str, str], sector_image: str, firmware: str
) -> None:
    buses = ["virtio", "scsi", "sata"] + (["ide"] if firmware == "bios" else [])
    disks = [{"size_mib": 8 + number, "bus": bus} for number, bus in enumerate(reversed(buses))]
    disks[-1] |= {"image": sector_image, "boot_order": 0}
    vm = new_vm(image="blank", firmware=firmware, disk_mib=16, disk_bus="virtio", disks=disks, node="host-a")
    site.wait_state(vm["id"], "running")
    if firmware == "bios":
        says(site, vm, "booted disk")
    mine = list(site.client.list("volumes", vm=vm["name"]))
    assert [volume["bus"] for volume in sorted(mine, key=lambda volume: volume["lun"])] == buses[::-1]
    with pytest.raises(ApiError, match="can only be attached or detached while"):
        site.client.act("volumes", next(v["id"] for v in mine if v["bus"] == "sata"), "detach")
    site.cli("vm", "migrate", vm["name"], "--to", "host-b")
    assert site.wait_state(vm["id"], "running")["node"] == "host-b"
    site.cli("vm", "kill", vm["name"], "--wait")
    site.cli("vm", "migrate", vm["name"], "--to", "host-a")
    site.cli("vm", "start", vm["name"], "--wait")
    kept = next(volume for volume in mine if volume["bus"] == "scsi")
    site.cli("volume", "detach", kept["name"])
    site.cli("vm", "delete", vm["name"], "--wait", "--yes")
    ids = {volume["id"] for volume in mine}
    until(
        lambda: [v["id"] for v in site.client.list("volumes") if v["id"] in ids] == [kept["id"]],
        "its disks are deleted with it",
    )
    site.cli("volume", "delete", kept["name"], "--yes")
