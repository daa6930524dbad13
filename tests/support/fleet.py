"""Nodes and VMs as placement sees them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from novacron.model.constraints import Placement
from novacron.model.node import (
    Accelerator,
    AcceleratorKind,
    ImageInfo,
    Inventory,
    Node,
    NodeSpec,
    NodeStatus,
)
from novacron.model.vm import VmSpec
from novacron.model.volume import Pool, PoolKind

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def node(
    name: str,
    *,
    memory_mib: int = 4608,
    cpus: int = 4,
    image: str = "tiny",
    free: float = 0.5,
    huge_2m_mib: int = 0,
    **spec: Any,
) -> Node:
    inventory = Inventory(
        cpus=cpus, memory_mib=memory_mib, architecture="x86_64", kernel="6.1", qemu_version="7.2",
        accelerator=Accelerator(AcceleratorKind.TCG, ""), images=(ImageInfo(image, "0" * 64, 1, "kernel"),),
        bridge=None, dwcp_endpoint="", agent_version="0",
        pools=(Pool("local", PoolKind.LOCAL, 1000, int(free * 1000)),), huge_2m_mib=huge_2m_mib,
    )  # fmt: skip
    return Node(name, NodeSpec(**spec), NodeStatus(True, "", inventory), 1, NOW)


def vm(**where: Any) -> VmSpec:
    size = {field: where.pop(field) for field in ("vcpus", "memory_mib", "image", "hugepages") if field in where}
    return VmSpec(**{"image": "tiny", **size}, placement=Placement(**where))
