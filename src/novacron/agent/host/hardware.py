"""What this host is made of, as Linux tells it: NUMA nodes, disks, interfaces and PCI devices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from novacron.model.hardware import Disk, HostHardware, HostInterface, NumaNode, PciDevice
from novacron.net import tap

SYS = Path("/sys")
NO_DISKS = ("loop", "ram", "zram", "dm-", "md", "sr", "fd")
DEVICES_MAX = 256
BRIDGE_CLASSES = ("0x0600", "0x0601", "0x0604", "0x0680")
"""Host, ISA, PCI and other bridges: no guest can have them (PCI Code and ID Assignment, base class 06)."""


def _text(path: Path, default: str = "") -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text().strip()
    return default


def _count(cpus: str) -> int:
    """Return how many processors a list like ``0-3,8`` names."""
    total = 0
    for part in filter(None, cpus.split(",")):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total


def _numa(root: Path) -> Iterator[NumaNode]:
    for directory in sorted((root / "devices/system/node").glob("node[0-9]*"), key=lambda p: int(p.name[4:])):
        total = next((line for line in _text(directory / "meminfo").splitlines() if "MemTotal" in line), "0 kB")
        yield NumaNode(_count(_text(directory / "cpulist")), int(total.split()[-2]) >> 10)


def _disks(root: Path) -> Iterator[Disk]:
    for directory in sorted((root / "class/block").glob("*")):
        if directory.name.startswith(NO_DISKS) or (directory / "partition").exists():
            continue
        sectors = int(_text(directory / "size", "0"))
        if sectors:
            rotates = _text(directory / "queue/rotational") == "1"
            yield Disk(directory.name, sectors * 512, _text(directory / "device/model"), rotates)


def _devices(root: Path) -> Iterator[PciDevice]:
    for directory in sorted((root / "bus/pci/devices").glob("*")):
        kind = _text(directory / "class")
        if kind.startswith(BRIDGE_CLASSES):
            continue
        with contextlib.suppress(OSError):
            driver, group = directory / "driver", directory / "iommu_group"
            yield PciDevice(
                directory.name,
                f"{_text(directory / 'vendor')[2:]}:{_text(directory / 'device')[2:]}",
                kind[2:6],
                driver.resolve().name if driver.exists() else "",
                int(group.resolve().name) if group.exists() else None,
            )


def _interfaces() -> list[HostInterface]:
    return [HostInterface(*interface) for interface in tap.links()]


def look(root: Path = SYS) -> HostHardware:
    """Return this host's hardware, as far as Linux reports it."""
    return HostHardware(
        next((line.partition(":")[2].strip() for line in _text(Path("/proc/cpuinfo")).splitlines()
              if line.startswith("model name")), ""),
        tuple(_numa(root)),
        tuple(_disks(root)),
        tuple(_interfaces()),
        tuple(_devices(root))[:DEVICES_MAX],
    )  # fmt: skip
