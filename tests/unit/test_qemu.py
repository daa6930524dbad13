"""QEMU's command line, and the probe's boot sector."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec

from novacron.model.node import AcceleratorKind
from novacron.qemu import boot
from novacron.qemu.command import QemuConfig, QemuNic, QemuVolume, command, quoted
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
