"""QEMU's command line, and the probe's boot sector."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import msgspec

from novacron.model.devices import DiskBus
from novacron.model.node import AcceleratorKind
from novacron.model.plugged import DeviceSlot, GuestNic, GuestNics, free_hot_number
from novacron.qemu import boot
from novacron.qemu.command import QemuConfig, QemuVolume, command, quoted
from novacron.qemu.monitor import COMMAND_TIMEOUT_S
from novacron.qemu.nics import QemuNic
from novacron.qemu.probe import boot_sector

CONFIG = QemuConfig(
    id="vm-aaaaaaaaaaaaaaaa",
    directory=Path("/vms/a,b"),
    vcpus=2,
    memory_mib=512,
    machine="pc-i440fx-7.2",
    accelerator=AcceleratorKind.TCG,
    kernel=Path("/images/tiny/vmlinuz"),
    initrd=Path("/images/tiny/initrd.img"),
    cmdline="console=ttyS0",
    nics=(QemuNic("52:54:00:00:00:01", "nvtap", 1450),),
)


def test_a_comma_in_a_path_opens_no_option() -> None:
    assert quoted("a,b") == "a,,b"
    arguments = command(CONFIG, incoming=False)
    assert "socket,id=monitor0,path=/vms/a,,b/qmp.sock,server=on,wait=off" in arguments


def test_both_ends_of_a_migration_start_the_same_machine() -> None:
    source, target = command(CONFIG, incoming=False), command(CONFIG, incoming=True)
    assert target == [*source, "-S", "-incoming", "defer"]


def test_qemu_is_sandboxed_and_reads_no_configuration_of_the_host() -> None:
    arguments = command(CONFIG, incoming=False)
    assert "-no-user-config" in arguments
    assert "-nodefaults" in arguments
    assert arguments[arguments.index("-sandbox") + 1].startswith("on,")


def test_the_boot_sector_is_one_that_a_bios_boots() -> None:
    sector = boot_sector()
    assert len(sector) == 512
    assert sector[-2:] == b"\x55\xaa"


def test_no_two_disks_have_the_same_boot_index() -> None:
    """QEMU does not start with a bootindex twice, and has 0 for a kernel of its own."""
    orders = (0, 0, 1, 1, None, 99)
    volumes = tuple(QemuVolume(f"vol-{lun}", lun, 10 + lun, boot_order=order) for lun, order in enumerate(orders))
    config = msgspec.structs.replace(CONFIG, disk=Path("disk.qcow2"), volumes=volumes)
    text = " ".join(command(config, incoming=False))
    indexes = [int(place) for place in re.findall(r'bootindex"?[=:] ?(\d+)', text)]
    assert len(indexes) == 6 and len(set(indexes)) == 6 and 0 not in indexes
    disk = next(place for place in indexes if place % boot.STEP == boot.OWN_DISK)
    assert sorted(indexes).index(disk) == 2, "those with 0 come before the disk, those with 1 after it"


def test_a_layers_header_never_decides_which_file_backs_it() -> None:
    config = msgspec.structs.replace(CONFIG, disk=Path("disk.qcow2"), below=7, shared=(8, 9))
    arguments = command(config, incoming=False)
    node = json.loads(arguments[arguments.index("-blockdev") + 1])
    chain = []
    while node is not None:
        chain.append((node["driver"], node["file"]["filename"]))
        assert node["driver"] == "raw" or "backing" in node
        node = node.get("backing")
    assert chain == [
        ("qcow2", "disk.qcow2"), ("qcow2", "/dev/fdset/101"), ("qcow2", "/dev/fdset/100"), ("raw", "/dev/fdset/1"),
    ]  # fmt: skip


def test_a_disk_that_is_being_restored_is_over_what_the_agent_offers_and_a_guest_sees_no_errors_of_it() -> None:
    config = msgspec.structs.replace(CONFIG, disk=Path("disk.qcow2"), below=7, restored_from="restore.sock")
    arguments = command(config, incoming=False)
    node = json.loads(arguments[arguments.index("-blockdev") + 1])
    backing = node["backing"]["file"]
    assert (backing["driver"], backing["server"]["path"]) == ("nbd", "restore.sock")
    assert 0 < backing["reconnect-delay"] < COMMAND_TIMEOUT_S, "QEMU answers nobody meanwhile"
    assert devices(config)["disk0-device"].endswith("rerror=stop,werror=stop")
    assert "set=1,fd=7" not in arguments


def devices(config: QemuConfig) -> dict[str, str]:
    """Return the device options of a command line by their ids."""
    arguments = command(config, incoming=True)
    every = [after for option, after in itertools.pairwise(arguments) if option == "-device"]
    names = [
        json.loads(text)["id"] if text.startswith("{") else text.partition("id=")[2].split(",")[0] for text in every
    ]
    return dict(zip(names, every, strict=True))


def test_interfaces_that_came_later_are_in_their_places_on_the_target_of_a_migration() -> None:
    """Without PCI Express from the last slot down, where nothing else is; with it at their ports."""
    nics = (QemuNic("52:54:00:00:00:01", "a", device="nic1"), QemuNic("52:54:00:00:00:02", "b", device="hot3"))
    on_pci = devices(msgspec.structs.replace(CONFIG, nics=nics))
    assert "bus=pci.0,addr=0x1c" in on_pci["hot3-device"] and "addr" not in on_pci["nic1-device"]
    q35 = msgspec.structs.replace(CONFIG, nics=nics, machine="pc-q35-7.2", nic_ports=8)
    on_pcie = devices(q35)
    assert on_pcie["hot3-device"].endswith("bus=hotport3")
    assert [name for name in on_pcie if name.startswith("hotport")] == [f"hotport{number}" for number in range(8)]
    assert not any(name.startswith("hotport") for name in devices(msgspec.structs.replace(q35, machine="pc")))


def test_after_an_interface_left_everything_else_stays_in_its_slot() -> None:
    volume = QemuVolume("vol-a", 0, 9, bus=DiskBus.VIRTIO)
    slots = (DeviceSlot("nic1-device", 3), DeviceSlot("disk0-device", 5), DeviceSlot("vol-a-device", 7))
    nics = (QemuNic("52:54:00:00:00:01", "a", device="nic1"),)
    config = msgspec.structs.replace(CONFIG, nics=nics, disk=Path("d.qcow2"), volumes=(volume,), slots=slots)
    found = devices(config)
    assert found["nic1-device"].endswith(",addr=0x3") and found["disk0-device"].endswith(",addr=0x5")
    assert (
        json.loads(found["vol-a-device"])["addr"] == "0x7"
        and "addr" not in found["video0" if config.display else "scsi0"]
    )


def test_a_place_for_an_interface_is_free_on_both_sides() -> None:
    """Neither an interface nor, on a bus that others share, another device has it."""
    nics = GuestNics((GuestNic("52:54:00:00:00:01", "hot0"),), ports=2)
    assert free_hot_number(nics, {31, 30}, pcie=False) == 2
    assert free_hot_number(nics, {31, 30}, pcie=True) == 1
    full = GuestNics((*nics.devices, GuestNic("52:54:00:00:00:02", "hot1")), ports=2)
    assert free_hot_number(full, (), pcie=True) is None
