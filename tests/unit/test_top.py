"""What VMs use: what of a node's metrics counts, and what ``vm top`` makes of two looks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from novacron.api.read_model.vm_usage import VmUsage, VmUsed, parse
from novacron.cli.top import By, used
from novacron.model.errors import Unavailable

LABELS = 'name="web",project="shop",vm="vm-1"'
"""As agents write them: in the order of their names."""
TEXT = f"""# HELP novacron_vm_cpu_seconds_total Processor time of its QEMU.
novacron_vm_cpu_seconds_total{{{LABELS}}} 12.5
novacron_vm_disk_read_bytes_total{{disk="a",{LABELS}}} 1e3
novacron_vm_disk_read_bytes_total{{{LABELS},zone="b"}} 24
novacron_vm_memory_bytes{{{LABELS}}} NaN
novacron_vm_vcpus{{{LABELS}}} -1
novacron_vm_vcpus{{{LABELS}}} many
novacron_vm_other{{{LABELS}}} 5
novacron_host_load1 3
novacron_vm_vcpus{{name="\\",vm=\\"vm-2",vm="vm-1"}} 4
novacron_vm_vcpus{{name=",vm=",other="1"}} 5
x novacron_vm_vcpus{{vm="vm-3"}} 6
"""


def test_only_what_can_be_counted_counts() -> None:
    assert parse(TEXT) == {"vm-1": VmUsed(cpu_s=12.5, vcpus=4.0, disk_read_bytes=1024.0)}
    assert parse("\x00garbage{") == {}


class Agents:
    """Nodes, of which one is away."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def ask(self, node: str, question: object) -> bytes:
        self.asked.append(node)
        await asyncio.sleep(0)
        if node == "away":
            raise Unavailable("it is away")
        return TEXT.encode()


async def test_a_node_is_asked_once_for_all_who_want_to_know() -> None:
    agents = Agents()
    usage = VmUsage(agents.ask)
    samples = await asyncio.gather(*(usage.of(["a", "away"]) for _ in range(5)))
    assert all(list(sample) == ["a"] for sample in samples)
    assert agents.asked.count("a") == 1


def look(at_s: float, **fields: Any) -> dict[str, Any]:
    none = dict.fromkeys(VmUsed.__struct_fields__)
    return {**none, "id": "vm-1", "name": "web", "node": "a", "at_s": at_s, **fields}


def test_rates_are_between_two_looks_at_the_same_qemu() -> None:
    before = [look(10, cpu_s=5.0, disk_read_bytes=0, disk_written_bytes=100)]
    now = look(14, cpu_s=7.0, disk_read_bytes=400, disk_written_bytes=100, memory_resident_bytes=9)
    (vm,) = used(before, [now])
    assert (vm["cpus"], vm["disk_bytes_per_s"], vm["network_bytes_per_s"], vm["used_bytes"]) == (0.5, 100, None, 9)
    for other in ({**now, "node": "b"}, {**now, "at_s": 10}, {**now, "cpu_s": 1.0}, {**now, "id": "vm-2"}):
        assert used(before, [other])[0]["cpus"] is None
    assert used([], [look(1, memory_bytes=10, memory_available_bytes=4)])[0]["used_bytes"] == 6


@pytest.mark.parametrize(("sort", "first"), [(By.CPU, "b"), (By.NETWORK, "a"), (By.NAME, "a")])
def test_the_most_comes_first(sort: By, first: str) -> None:
    before = [look(0, id=name, name=name, cpu_s=0, network_sent_bytes=0) for name in ("b", "a")]
    now = [
        look(1, id="b", name="b", cpu_s=3, network_sent_bytes=1),
        look(1, id="a", name="a", cpu_s=1, network_sent_bytes=9),
    ]
    assert used(before, now, sort)[0]["name"] == first
