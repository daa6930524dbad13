"""``novacron vm top``: what VMs use just now."""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from typing import Annotated

import typer

from novacron.cli import output
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.client import Client
from novacron.terminal import clear

COUNTERS = {
    "cpus": ("cpu_s",),
    "disk_bytes_per_s": ("disk_read_bytes", "disk_written_bytes"),
    "network_bytes_per_s": ("network_received_bytes", "network_sent_bytes"),
}
"""Rates, and the counters of which each is made."""


class By(StrEnum):
    """What VMs are sorted by."""

    CPU = "cpu"
    MEMORY = "memory"
    DISK = "disk"
    NETWORK = "network"
    NAME = "name"


SORTED_BY = {
    By.CPU: "cpus", By.MEMORY: "used_bytes", By.DISK: "disk_bytes_per_s", By.NETWORK: "network_bytes_per_s",
}  # fmt: skip


def _rate(bytes_per_s: float | None) -> str | None:
    return None if bytes_per_s is None else f"{output.size(bytes_per_s)}/s"


COLUMNS: Columns = {
    "NAME": lambda vm: vm["name"],
    "NODE": lambda vm: vm["node"],
    "CPU": lambda vm: None if vm["cpus"] is None else f"{vm['cpus'] * 100:.0f} %",
    "CPUS": lambda vm: vm["vcpus"] and f"{vm['vcpus']:.0f}",
    "MEMORY": lambda vm: vm["used_bytes"] and output.size(vm["used_bytes"]),
    "OF": lambda vm: vm["memory_bytes"] and output.size(vm["memory_bytes"]),
    "DISK": lambda vm: _rate(vm["disk_bytes_per_s"]),
    "NETWORK": lambda vm: _rate(vm["network_bytes_per_s"]),
}


def top(
    once: Annotated[bool, typer.Option("--once", help="print one table and exit, for scripts")] = False,
    sort: Annotated[By, typer.Option(help="column to sort by, highest first")] = By.CPU,
    interval: Annotated[float, typer.Option(min=2, max=3600, help="seconds between updates")] = 3,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="number of VMs to show")] = 40,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Show what running VMs use: processors, memory, disk and network, until Ctrl-C.

    CPU is in percent of one processor. MEMORY is what the guest uses if its balloon driver says so, else what its QEMU
    takes of the host.
    """
    with output.errors():
        client = Client()
        before = client.vm_usage()
        while True:
            time.sleep(interval)
            now = client.vm_usage()
            shown = used(before, now, sort)[:limit]
            if not once and sys.stdout.isatty():
                clear()
            output.rows(shown, COLUMNS, output_)
            if once:
                return
            before = now


def used(before: list[Object], now: list[Object], sort: By = By.CPU) -> list[Object]:
    """Return what each VM used between two looks, sorted."""
    earlier = {vm["id"]: vm for vm in before}
    vms = [{**vm, **_rates(earlier.get(vm["id"]), vm), "used_bytes": _used_bytes(vm)} for vm in now]
    vms.sort(key=lambda vm: str(vm["name"]))
    if sort is not By.NAME:
        vms.sort(key=lambda vm: -(vm[SORTED_BY[sort]] or 0.0))
    return vms


def _rates(before: Object | None, now: Object) -> Object:
    """Return rates; None where there is no earlier look at the same QEMU, on the same node."""
    rates: Object = dict.fromkeys(COUNTERS)
    if before is None or before["node"] != now["node"] or now["at_s"] <= before["at_s"]:
        return rates
    for rate, counters in COUNTERS.items():
        pairs = [(before[counter], now[counter]) for counter in counters]
        grown = [b - a for a, b in pairs if a is not None and b is not None]
        if grown and min(grown) >= 0:  # else another QEMU began meanwhile
            rates[rate] = sum(grown) / (now["at_s"] - before["at_s"])
    return rates


def _used_bytes(vm: Object) -> float | None:
    if vm["memory_bytes"] is not None and vm["memory_available_bytes"] is not None:
        return max(0.0, float(vm["memory_bytes"] - vm["memory_available_bytes"]))
    return None if vm["memory_resident_bytes"] is None else float(vm["memory_resident_bytes"])
