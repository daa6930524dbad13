"""What a new VM has by default, by its guest's operating system. Pure."""

from __future__ import annotations

from typing import Any

from novacron.model.devices import DiskBus, NicModel, Os
from novacron.model.vm import Firmware

WINDOWS: dict[str, Any] = {"disk_bus": DiskBus.SATA, "nic_model": NicModel.E1000, "vcpus": 2, "memory_mib": 4096}
"""Windows comes with drivers for these; it gets those for virtio from a second CD."""
LINUX: dict[str, Any] = {"vcpus": 1, "memory_mib": 1024}

PRESETS: dict[Os, dict[str, Any]] = {
    Os.OTHER: {},
    Os.LINUX: LINUX,
    Os.DEBIAN12: LINUX,
    Os.WINDOWS10: WINDOWS | {"firmware": Firmware.UEFI},
    Os.WINDOWS11: WINDOWS | {"firmware": Firmware.UEFI_SECURE, "tpm": True},
}
