"""docs/reference/devices.md says of every device what becomes of it, and of every operating system what it decides."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from lab.generate import PRESET_FIELDS
from novacron.model.devices import DiskBus, NicModel, Os
from novacron.model.presets import PRESETS
from novacron.model.vm import VmFields

PAGE = (Path(__file__).parents[2] / "docs/reference/devices.md").read_text()
DEVICES = ("disk_boot_order", "network_boot_order", "cdroms", "boot_once", "kernel", "initrd", "kernel_arguments", "os",
           "disks", "smbios_manufacturer", "smbios_serial", "smbios_asset_tag", "serial_ports", "usb",
           "cpu_policy", "numa_nodes", "hugepages")  # fmt: skip
"""Beside buses and models."""


def rows(heading: str) -> list[list[str]]:
    """Return the cells of a table, by the first word of its heading row."""
    table = re.search(rf"^\| {re.escape(heading)} \|.*\n\|[-|]+\n((?:\|.*\n?)+)", PAGE, re.M)
    assert table is not None, heading
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


def test_every_device_has_a_row_that_says_what_becomes_of_it() -> None:
    table = rows("device")
    fields = " ".join(row[1] for row in table)
    wanted = [f"`disk_bus` `{bus}`" for bus in DiskBus] + [f"`nic_model` `{model}`" for model in NicModel]
    assert [name for name in (*wanted, *(f"`{field}`" for field in DEVICES)) if name not in fields] == []
    assert [row for row in table if len(row) != 9 or not all(row)] == [], "each column says something"


def test_the_page_says_what_each_operating_system_decides() -> None:
    defaults = {field.name: field.default for field in msgspec.structs.fields(VmFields)}
    for row, system in zip(rows("`os`"), Os, strict=True):
        chosen = [PRESETS[system].get(field, defaults[field]) for field in PRESET_FIELDS]
        words = [{True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
                 for value in chosen]  # fmt: skip
        assert [cell.strip("`") for cell in row[:7]] == [system.value, *words]
        assert row[7:] == (["local time", "with KVM"] if system.is_windows else ["UTC", "no"])
