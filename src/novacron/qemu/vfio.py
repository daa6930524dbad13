"""PCI devices of this host that are passed through to guests (Linux: Documentation/driver-api/vfio.rst).

The IOMMU keeps a device's memory accesses within its guest; devices of one group can reach each other's memory, so a
group is passed through whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path

DRIVER = "vfio-pci"
MEMLOCK_BESIDE_BYTES = 1 << 30
"""How much QEMU locks besides the guest's memory."""
BRIDGES = "0x06"


class DeviceFailed(Exception):
    """A device can't be passed through: says which, and why."""


class Vfio:
    """The devices of a host; ``sys`` and ``dev`` are where Linux shows them."""

    def __init__(self, sys: Path = Path("/sys"), dev: Path = Path("/dev/vfio")) -> None:
        self._pci = sys / "bus/pci"
        self._dev = dev

    def _device(self, address: str) -> Path:
        return self._pci / "devices" / address

    def id(self, address: str) -> str | None:
        """Return vendor and device of a device, such as ``8086:10fb``; None if it is not there."""
        with contextlib.suppress(OSError):
            return ":".join((self._device(address) / name).read_text().strip()[2:] for name in ("vendor", "device"))
        return None

    def group(self, address: str) -> Path | None:
        """Return the IOMMU group of a device, None if nothing keeps it within its guest."""
        link = self._device(address) / "iommu_group"
        return link.resolve() if link.exists() else None

    def bind(self, addresses: Collection[str], uid: int | None) -> list[Path]:
        """Take devices from the host for a QEMU of user ``uid``; return what it opens. Raises DeviceFailed."""
        groups = [self._isolated_group(address, addresses) for address in addresses]
        try:
            for address in addresses:
                self._set_driver(address, DRIVER)
                if self._driver(address) != DRIVER:
                    raise DeviceFailed(f"driver {DRIVER} does not take device {address}: modprobe {DRIVER}")
            for path in groups:
                if uid is not None:
                    os.chown(path, uid, uid)
        except OSError as error:
            raise DeviceFailed(f"devices {', '.join(addresses)} can't be passed through: {error}") from error
        return groups

    def _isolated_group(self, address: str, addresses: Collection[str]) -> Path:
        """Return what QEMU opens for a device, if the host uses nothing else of its group. Raises DeviceFailed."""
        group = self.group(address)
        if group is None:
            raise DeviceFailed(f"device {address} has no IOMMU group: is the IOMMU on?")
        for other in self._beside(group):
            if other not in addresses and self._driver(other) not in ("", DRIVER):
                raise DeviceFailed(f"device {address} can't be isolated from {other}, which the host uses")
        return self._dev / group.name

    def release(self, addresses: Iterable[str]) -> None:
        """Give devices back to the host."""
        for address in addresses:
            with contextlib.suppress(OSError):  # it may have been taken out
                self._set_driver(address, "")

    def _beside(self, group: Path) -> list[str]:
        """Return the devices of a group that are no bridges."""
        return [
            entry.name
            for entry in sorted((group / "devices").iterdir())
            if not (self._device(entry.name) / "class").read_text().startswith(BRIDGES)
        ]

    def _driver(self, address: str) -> str:
        link = self._device(address) / "driver"
        return link.resolve().name if link.exists() else ""

    def _set_driver(self, address: str, driver: str) -> None:
        """Bind a device to this driver, or, for ``""``, to the host's own. Raises OSError."""
        if driver and self._driver(address) == driver:
            return
        (self._device(address) / "driver_override").write_text(f"{driver}\n")
        if self._driver(address):
            (self._device(address) / "driver/unbind").write_text(address)
        (self._pci / "drivers_probe").write_text(address)


def arguments(addresses: Iterable[str]) -> list[str]:
    """Return QEMU's arguments for these devices."""
    return [
        argument
        for number, address in enumerate(addresses)
        for argument in ("-device", f"vfio-pci,host={address},id=host{number}")
    ]
