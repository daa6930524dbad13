"""QEMU's command line, and the probe's boot sector."""

from __future__ import annotations

from pathlib import Path

from novacron.model.node import AcceleratorKind
from novacron.qemu.command import Config, Nic, command, quoted
from novacron.qemu.probe import boot_sector

CONFIG = Config(
    id="vm-aaaaaaaaaaaaaaaa",
    directory=Path("/vms/a,b"),
    vcpus=2,
    memory_mib=512,
    machine="pc-i440fx-7.2",
    accelerator=AcceleratorKind.TCG,
    kernel=Path("/images/tiny/vmlinuz"),
    initrd=Path("/images/tiny/initrd.img"),
    cmdline="console=ttyS0",
    nic=Nic("52:54:00:00:00:01", "nvtap", 1450),
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
