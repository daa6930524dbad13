"""What QEMU is configured with follows from the VM's spec, its image and what was opened for it, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import cast
from unittest.mock import Mock

import msgspec
import pytest

from novacron.agent.host.networks import NodeNetworks
from novacron.agent.host.wired import Wired
from novacron.agent.vm.directory import VmDirectory
from novacron.agent.vm.interfaces import Interfaces
from novacron.agent.vm.launch import Inherited, StartRequest, qemu_config
from novacron.disk.images import LocalImage
from novacron.model.guest_hardware import GuestHardware
from novacron.model.network import NicSpec
from novacron.model.node import AcceleratorKind
from novacron.model.plugged import GuestNic, GuestNics
from novacron.model.vm import Display, Firmware, VmSpec, tap_name
from novacron.qemu.nics import QemuNic
from novacron.wire import messages as wire

MAC_A, MAC_B, MAC_C, MAC_D = (f"06:00:00:00:00:0{letter}" for letter in "abcd")
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
        INHERITED,
        kernel=6,
        initrd=7,
        seed=8,
        firmware=9,
        below=10,
        shared=(11,),
        devices=("0000:01:00.0",),
        restored_from="restore.sock",
    )
    config = qemu_config("vm-a", "qemu", request(VmSpec(image="tiny")), numbered)
    for name in Inherited.__struct_fields__:
        if name not in ("kernel", "initrd"):
            assert getattr(config, name) == getattr(numbered, name), name
    assert config.kernel is not None
    assert config.initrd is not None
    assert (config.kernel.name, config.initrd.name) == ("6", "7")


async def test_a_guest_that_comes_has_the_interfaces_that_it_had_not_those_of_its_spec(tmp_path: Path) -> None:
    """One that it has not got yet comes later, in its place; one that it has not let go of yet leads nowhere."""
    spec = VmSpec(image="tiny", nics=(NicSpec("lan", mac=MAC_B), NicSpec("lan", mac=MAC_C), NicSpec("lan", mac=MAC_D)))
    home = VmDirectory(tmp_path / "vm-aaaaaaaaaaaaaaaa", None)
    home.path.mkdir()
    interfaces = Interfaces("vm-aaaaaaaaaaaaaaaa", home, cast(NodeNetworks, Wires()), None)
    has = GuestNics((GuestNic(MAC_A, "nic0"), GuestNic(MAC_B, "nic1"), GuestNic(MAC_D, "hot0")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Wired, "create", lambda self, mark: (1450, 7))
        patch.setattr("novacron.net.tap.open_", lambda name: 8)
        nics = await interfaces.make(spec, lambda descriptor: descriptor, has)
    assert [(nic.device, nic.mac, nic.descriptor) for nic in nics] == [
        ("nic0", MAC_A, 8), ("nic1", MAC_B, 7), ("hot0", MAC_D, 7),
    ]  # fmt: skip
    assert not interfaces.are(spec), "there is something to do"
    assert [nic.mac for nic in interfaces.wired] == [MAC_B, MAC_D], "an agent that restarts knows what is plugged in"


class Wires:
    """Networks that are ready."""

    instance = "test"

    async def wire(self, vm: str, number: int, network: str, mac: str) -> Wired:
        return Wired(tap_name(vm, number), mac, "br0", network=network)
