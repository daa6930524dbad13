"""What QEMU is configured with follows from the VM's spec, its image and what was opened for it, and nothing else."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import msgspec

from novacron.agent.vm.launch import Inherited, StartRequest, qemu_config
from novacron.disk.images import LocalImage
from novacron.model.node import AcceleratorKind
from novacron.model.vm import Display, Firmware, GuestHardware, VmSpec
from novacron.qemu.command import QemuNic
from novacron.wire import messages as wire

INHERITED = Inherited((QemuNic("02:00:00:00:00:01", None),), (), (), 3, 4, 5, None, None, None, None, None, ())


def request(spec: VmSpec, *, incoming: bool = False, hardware: GuestHardware | None = None) -> StartRequest:
    assignment = wire.Assignment("vm-a", "a", spec, False, "", 0, None, "default", bytes(32), hardware=hardware)
    image = Mock(spec=LocalImage, disk=Path("/images/tiny.raw"), cmdline="quiet", kernel=None, initrd=None)
    return StartRequest(assignment, image, AcceleratorKind.TCG, "", list, incoming)


def test_devices_follow_the_spec() -> None:
    spec = VmSpec(image="tiny", vcpus=3, memory_mib=300, firmware=Firmware.UEFI_SECURE, tpm=True, display=Display.VGA)
    config = qemu_config("vm-a", "qemu", request(spec), INHERITED)
    assert (config.vcpus, config.memory_mib, config.secure, config.tpm, config.display) == (3, 300, True, True, True)
    assert (config.monitor, config.console, config.guest) == (3, 4, 5)


def test_an_incoming_guest_has_the_hardware_that_it_has_grown_to() -> None:
    spec, grown = VmSpec(image="tiny", vcpus=4, memory_mib=512), GuestHardware(2, 256, balloon=False)
    here = qemu_config("vm-a", "qemu", request(spec, hardware=grown), INHERITED)
    coming = qemu_config("vm-a", "qemu", request(spec, incoming=True, hardware=grown), INHERITED)
    assert (here.vcpus, here.memory_mib, here.balloon) == (4, 512, True)
    assert (coming.vcpus, coming.memory_mib, coming.balloon) == (2, 256, False)


def test_the_kernel_command_line_contains_the_guests_address() -> None:
    by_hand = qemu_config("vm-a", "qemu", request(VmSpec(image="tiny", address="10.0.0.2/24")), INHERITED)
    assert by_hand.cmdline == "quiet novacron.address=10.0.0.2/24"
    assert qemu_config("vm-a", "qemu", request(VmSpec(image="tiny")), INHERITED).cmdline == "quiet"


def test_every_inherited_field_reaches_qemu() -> None:
    numbered = msgspec.structs.replace(
        INHERITED, kernel=6, initrd=7, seed=8, firmware=9, below=10, shared=(11,), devices=("0000:01:00.0",)
    )
    config = qemu_config("vm-a", "qemu", request(VmSpec(image="tiny")), numbered)
    for name in Inherited.__struct_fields__:
        if name not in ("kernel", "initrd"):
            assert getattr(config, name) == getattr(numbered, name), name
    assert config.kernel is not None
    assert config.initrd is not None
    assert (config.kernel.name, config.initrd.name) == ("6", "7")
