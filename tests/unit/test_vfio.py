"""PCI devices that are handed to guests, in a tree like Linux' own whose drivers obey."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from novacron.agent.host.passthrough import Passthrough
from novacron.model.hardware import HostHardware, PciDevice
from novacron.model.node import Node
from novacron.model.placement import Fleet, Wish
from novacron.model.vm import VmSpec
from novacron.qemu.vfio import DeviceFailed, Vfio, arguments
from tests.support.fleet import node

NIC, TWIN, DISK = "0000:01:00.0", "0000:02:00.0", "0000:01:00.1"


class Kernel(Vfio):
    """Does what Linux does when a device is probed anew."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "sys", root / "dev")
        self.root = root
        self.obeys = True
        self._homes: dict[str, str] = {}

    def add(self, address: str, id: str, driver: str, group: str) -> None:
        directory = self.root / "sys/bus/pci/devices" / address
        directory.mkdir(parents=True)
        for name, text in (("vendor", f"0x{id[:4]}"), ("device", f"0x{id[5:]}"), ("class", "0x020000")):
            (directory / name).write_text(text)
        if group:
            members = self.root / "groups" / group / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / address).touch()
            (directory / "iommu_group").symlink_to(members.parent)
            (self.root / "dev").mkdir(exist_ok=True)
            (self.root / "dev" / group).touch()
        self._homes[address] = driver
        self._take(address, driver)

    def _take(self, address: str, driver: str) -> None:
        link = self._device(address) / "driver"
        link.unlink(missing_ok=True)
        if driver:
            (self.root / "drivers" / driver).mkdir(parents=True, exist_ok=True)
            link.symlink_to(self.root / "drivers" / driver)

    def _set_driver(self, address: str, driver: str) -> None:
        super()._set_driver(address, driver)
        if self.obeys:
            self._take(address, driver or self._homes[address])

    def driver(self, address: str) -> str:
        return self._driver(address)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    fake = Kernel(tmp_path)
    fake.add(NIC, "8086:10fb", "ixgbe", "12")
    fake.add(DISK, "1b4b:9230", "", "12")
    fake.add(TWIN, "8086:10fb", "ixgbe", "13")
    return fake


def test_a_device_belongs_to_its_guest_until_the_guest_ends(kernel: Kernel) -> None:
    passthrough = Passthrough(kernel)
    assert passthrough.choose("a", ["8086:10fb"], [TWIN, NIC]) == (NIC,)
    assert passthrough.choose("b", ["8086:10fb"], [TWIN, NIC]) == (TWIN,)
    with pytest.raises(DeviceFailed, match="8086:10fb"):
        passthrough.choose("c", ["8086:10fb"], [TWIN, NIC])
    assert kernel.bind([NIC], None) == [kernel.root / "dev/12"]
    assert (kernel.driver(NIC), kernel.driver(TWIN)) == ("vfio-pci", "ixgbe")
    passthrough.leave("a")
    assert kernel.driver(NIC) == "ixgbe"
    assert passthrough.choose("c", ["8086:10fb"], [TWIN, NIC]) == (NIC,)
    passthrough.leave("nobody")


def test_unlisted_devices_are_given_to_nobody(kernel: Kernel) -> None:
    with pytest.raises(DeviceFailed):
        Passthrough(kernel).choose("a", ["8086:10fb"], [])
    with pytest.raises(DeviceFailed):
        Passthrough(kernel).choose("a", ["8086:10fb"], ["0000:09:00.0"])


def test_a_device_that_cannot_be_isolated_is_not_passed_through(kernel: Kernel) -> None:
    kernel.add("0000:03:00.0", "8086:1533", "igb", "")
    with pytest.raises(DeviceFailed, match="no IOMMU group"):
        kernel.bind(["0000:03:00.0"], None)
    kernel._take(DISK, "ahci")
    with pytest.raises(DeviceFailed, match=f"can't be isolated from {DISK}"):
        kernel.bind([NIC], None)
    assert kernel.driver(NIC) == "ixgbe", "it was left alone"
    kernel.obeys = False
    with pytest.raises(DeviceFailed, match="modprobe vfio-pci"):
        kernel.bind([TWIN], None)


def test_qemu_gets_devices_by_their_addresses() -> None:
    assert arguments([NIC]) == ["-device", f"vfio-pci,host={NIC},id=host0"]


def with_devices(name: str, listed: tuple[str, ...], group: int | None = 12) -> Node:
    record = node(name)
    assert record.status.inventory is not None
    devices = tuple(PciDevice(address, "8086:10fb", "0200", "ixgbe", group) for address in (NIC, TWIN))
    inventory = msgspec.structs.replace(record.status.inventory, hardware=HostHardware("", (), (), (), devices))
    return msgspec.structs.replace(
        record,
        spec=msgspec.structs.replace(record.spec, passthrough=listed),
        status=msgspec.structs.replace(record.status, inventory=inventory),
    )


def test_vms_are_placed_where_their_devices_are_listed_and_free() -> None:
    fleet = Fleet([with_devices("a", (NIC,)), with_devices("b", (NIC, TWIN)), with_devices("c", (NIC,), None)], {})
    image = fleet.nodes["a"].status.inventory.images[0].name  # type: ignore[union-attr]
    spec = VmSpec(image, memory_mib=64, devices=("8086:10fb",))
    placed = [fleet.place(Wish(str(number), spec)) for number in range(4)]
    assert sorted(filter(None, placed)) == ["a", "b", "b"] and placed[3] is None
    refusals = {verdict.node: verdict.refusal for verdict in fleet.explain(Wish("x", spec))}
    assert refusals["b"] == "node b has 2 of its 2 devices 8086:10fb in use"
    assert refusals["c"] == "node c gives no devices 8086:10fb to VMs, 1 needed"
