"""What VMs use, as their nodes measure it: asked of a node at most every other second, whoever wants to know."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from novacron.model.errors import NovaError
from novacron.wire.questions import Question, ReadMetrics

Ask = Callable[[str, Question[bytes]], Awaitable[bytes]]

FRESH_S = 2.0
NODES_AT_ONCE_MAX = 16
LINE = re.compile(
    r'^novacron_vm_(\w+)\{(?:\w+="(?:[^"\\\n]|\\.)*",)*?vm="([^"\\\n]{1,64})"(?:,[^\n]*)?\} (\S{1,32})', re.MULTILINE
)
"""A metric of a VM; ``vm`` is the label of that name, wherever it stands, and nothing within another's value."""
FIELDS = {
    "cpu_seconds_total": "cpu_s",
    "vcpus": "vcpus",
    "memory_bytes": "memory_bytes",
    "memory_available_bytes": "memory_available_bytes",
    "memory_resident_bytes": "memory_resident_bytes",
    "disk_read_bytes_total": "disk_read_bytes",
    "disk_written_bytes_total": "disk_written_bytes",
    "network_receive_bytes_total": "network_received_bytes",
    "network_transmit_bytes_total": "network_sent_bytes",
}
"""Metrics of a VM, and what they are called here. Those of several disks or interfaces are added up."""


class VmUsed(msgspec.Struct, frozen=True):
    """What a VM has used since its QEMU began, and has now. None: its node or its guest does not say."""

    cpu_s: float | None = None
    vcpus: float | None = None
    memory_bytes: float | None = None
    memory_available_bytes: float | None = None
    """What the guest could still use, as its balloon driver says."""
    memory_resident_bytes: float | None = None
    """Memory of the host."""
    disk_read_bytes: float | None = None
    disk_written_bytes: float | None = None
    network_received_bytes: float | None = None
    network_sent_bytes: float | None = None


class Sample(msgspec.Struct, frozen=True):
    """What the VMs of one node have used, by id."""

    at_s: float
    """When it was asked (clock of the server, Unix time)."""
    vms: dict[str, VmUsed]


def parse(text: str) -> dict[str, VmUsed]:
    """Return what Prometheus' text format says of VMs; lines that say something else do not count."""
    sums: dict[str, dict[str, float]] = {}
    for name, vm, number in LINE.findall(text):
        field = FIELDS.get(name)
        if field is None:
            continue
        with contextlib.suppress(ValueError):
            value = float(number)
            if math.isfinite(value) and value >= 0:
                of_vm = sums.setdefault(vm, {})
                of_vm[field] = of_vm.get(field, 0.0) + value
    return {vm: VmUsed(**fields) for vm, fields in sums.items()}


class VmUsage:
    """The latest sample of each node. ``ask`` asks a node."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._samples: dict[str, Sample] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._free = asyncio.Semaphore(NODES_AT_ONCE_MAX)

    async def of(self, nodes: Iterable[str]) -> dict[str, Sample]:
        """Return a sample of each of these nodes that answers."""
        names = sorted(set(nodes))
        samples = await asyncio.gather(*(self._of(name) for name in names))
        return {name: sample for name, sample in zip(names, samples, strict=True) if sample is not None}

    async def _of(self, node: str) -> Sample | None:
        async with self._locks.setdefault(node, asyncio.Lock()), self._free:
            sample = self._samples.get(node)
            if sample is not None and 0 <= time.time() - sample.at_s < FRESH_S:
                return sample
            at_s = time.time()
            try:
                text = await self._ask(node, ReadMetrics(open_metrics=False))
            except NovaError:  # it is away: its VMs are left out
                self._samples.pop(node, None)
                return None
            self._samples[node] = Sample(at_s, await asyncio.to_thread(parse, text.decode(errors="replace")))
            return self._samples[node]
