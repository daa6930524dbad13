"""What the memory in a snapshot fits, and what a snapshot does not contain."""

from __future__ import annotations

import msgspec
import pytest

from novacron.model.snapshot import ExcludedVolume, MachineLayout, layout_differences, volume_differences

THEN = MachineLayout("7.2.22", "pc-i440fx-7.2", "tcg", 1, 128, (), ("disk0-device (virtio-blk-pci)", "virtio-net-pci"))


def test_memory_fits_the_machine_that_had_it() -> None:
    assert layout_differences(THEN, THEN) == []


@pytest.mark.parametrize("version", ["7.2.22", "7.2.23", "8.0.0", "10.0.2"])
def test_a_newer_qemu_takes_memory_of_an_older_one(version: str) -> None:
    assert layout_differences(THEN, msgspec.structs.replace(THEN, qemu=version)) == []


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"qemu": "7.2.9"}, "it was taken with QEMU 7.2.22, and this node has QEMU 7.2.9"),
        ({"machine": "q35"}, "the machine type was pc-i440fx-7.2 and is q35"),
        ({"accelerator": "kvm"}, "the accelerator was tcg and is kvm"),
        ({"vcpus": 2}, "the number of vCPUs was 1 and is 2"),
        ({"memory_mib": 256}, "the memory was 128 MiB and is 256 MiB"),
        ({"added_mib": (128,)}, "the memory was 128 MiB and is 128 + 128 MiB"),
        ({"devices": THEN.devices[:1]}, "device virtio-net-pci is missing"),
        ({"devices": (*THEN.devices, "virtio-net-pci")}, "device virtio-net-pci is new"),
    ],
)
def test_each_difference_of_the_machine_is_named(changes: dict[str, object], difference: str) -> None:
    assert layout_differences(THEN, msgspec.structs.replace(THEN, **changes)) == [difference]


def test_a_volume_that_changed_its_place_is_named() -> None:
    data, logs = ExcludedVolume("vol-1", "data", 0), ExcludedVolume("vol-2", "logs", 1)
    assert volume_differences((data, logs), (logs, data)) == []
    assert volume_differences((data, logs), (data,)) == ["volume logs was attached"]
    assert volume_differences((data,), (data, logs)) == ["volume logs was not attached"]
    moved = msgspec.structs.replace(logs, lun=0)
    assert volume_differences((data, logs), (moved,)) == [
        "volume data was attached", "volume logs was at place 1 and is at 0",
    ]  # fmt: skip
