"""What a host is made of, read from a tree like Linux' own."""

from __future__ import annotations

from pathlib import Path

from novacron.agent.host import hardware
from novacron.model.hardware import Disk, NumaNode, PciDevice


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def test_hardware_that_linux_reports_is_listed_and_missing_values_are_omitted(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "devices/system/node/node0/cpulist": "0-3,8",
            "devices/system/node/node0/meminfo": "Node 0 MemTotal:       33554432 kB",
            "devices/system/node/node10/cpulist": "4-7",
            "devices/system/node/node10/meminfo": "Node 10 MemTotal:       1048576 kB",
            "class/block/nvme0n1/size": "2048",
            "class/block/nvme0n1/queue/rotational": "0",
            "class/block/nvme0n1/device/model": "Fast  ",
            "class/block/nvme0n1p1/size": "1024",
            "class/block/nvme0n1p1/partition": "1",
            "class/block/loop0/size": "2048",
            "class/block/sr0/size": "0",
            "bus/pci/devices/0000:00:00.0/class": "0x060000",
            "bus/pci/devices/0000:01:00.0/class": "0x020000",
            "bus/pci/devices/0000:01:00.0/vendor": "0x8086",
            "bus/pci/devices/0000:01:00.0/device": "0x10fb",
            "drivers/ixgbe/x": "",
            "groups/12/x": "",
        },
    )
    (tmp_path / "bus/pci/devices/0000:01:00.0/driver").symlink_to(tmp_path / "drivers/ixgbe")
    (tmp_path / "bus/pci/devices/0000:01:00.0/iommu_group").symlink_to(tmp_path / "groups/12")
    report = hardware.look(tmp_path)
    assert report.numa == (NumaNode(5, 32768), NumaNode(4, 1024))
    assert report.disks == (Disk("nvme0n1", 2048 * 512, "Fast", False),)
    assert report.devices == (PciDevice("0000:01:00.0", "8086:10fb", "0200", "ixgbe", 12),)
    assert hardware.look(tmp_path / "nothing").numa == ()
