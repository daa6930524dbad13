"""What nodes' processors have in common, as the feed says."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.model.cpu import CpuModel
from novacron.model.node import Accelerator, AcceleratorKind, Inventory
from novacron.server.cpu_baseline import CpuBaselines
from novacron.server.peers import watched_by
from novacron.store.feed import Change

MANY, FEW = ("aes", "avx", "avx2"), ("aes", "avx")


def inventory(flags: tuple[str, ...] | None, kind: AcceleratorKind = AcceleratorKind.KVM) -> Inventory:
    cpu = None if flags is None else CpuModel("GenuineIntel", 6, 85, 7, flags)
    return Inventory(
        cpus=4, memory_mib=8192, architecture="x86_64", kernel="6.1", qemu_version="7.2",
        accelerator=Accelerator(kind, ""), images=(), bridge="br0",
        dwcp_endpoint="127.0.0.1:1", agent_version="0", cpu=cpu,
    )  # fmt: skip


def inventory_change(node: str, has: Inventory, passthrough: tuple[str, ...] = ()) -> Change:
    body: dict[str, Any] = {
        "status": {"inventory": msgspec.to_builtins(has)},
        "spec": {"passthrough": list(passthrough)},
    }
    return Change(1, "node", node, body)


def test_the_baseline_is_unknown_before_the_feed_has_begun() -> None:
    processors = CpuBaselines()
    assert not processors.known
    processors.reset()
    assert processors.known


def test_a_lesser_processor_affects_nodes_with_the_same_accelerator() -> None:
    processors = CpuBaselines()
    assert processors.changed(inventory_change("a", inventory(MANY))) == {"a"}
    assert processors.changed(inventory_change("b", inventory(MANY))) == {"b"}
    assert processors.changed(inventory_change("slow", inventory(MANY, AcceleratorKind.TCG))) == {"slow"}
    assert processors.common(inventory(MANY)) == inventory(MANY).cpu

    assert processors.changed(inventory_change("c", inventory(FEW))) == {"a", "b", "c"}
    assert processors.common(inventory(MANY)) == inventory(FEW).cpu
    assert processors.common(inventory(MANY, AcceleratorKind.TCG)) == inventory(MANY).cpu


def test_a_repeated_inventory_affects_nobody() -> None:
    processors = CpuBaselines()
    processors.changed(inventory_change("a", inventory(MANY)))
    assert processors.changed(inventory_change("a", inventory(MANY))) == set()
    assert processors.changed(inventory_change("a", inventory(MANY), ("0000:01:00.0",))) == {"a"}


def test_limits_of_a_kind_end_with_its_last_node() -> None:
    processors = CpuBaselines()
    for node, flags in (("a", MANY), ("b", FEW), ("c", FEW)):
        processors.changed(inventory_change(node, inventory(flags)))
    assert processors.changed(Change(2, "node", "b", None)) == set()
    assert processors.changed(Change(3, "node", "c", None)) == {"a"}
    assert processors.common(inventory(MANY)) == inventory(MANY).cpu
    assert processors.changed(Change(4, "node", "never", None)) == set()


def test_a_node_whose_processor_changes_is_counted_once() -> None:
    processors = CpuBaselines()
    processors.changed(inventory_change("a", inventory(MANY)))
    processors.changed(inventory_change("b", inventory(FEW)))
    assert processors.changed(inventory_change("b", inventory(MANY))) == {"a", "b"}
    assert processors.common(inventory(MANY)) == inventory(MANY).cpu


def test_a_node_without_a_reported_processor_has_no_baseline() -> None:
    processors = CpuBaselines()
    processors.changed(inventory_change("a", inventory(None)))
    assert processors.common(inventory(None)) is None
    assert processors.common(None) is None


def test_each_node_watches_the_next_nodes_by_name() -> None:
    def names(node: str, *ring: str) -> list[str]:
        return [name for name, _ in watched_by([(peer, "endpoint") for peer in ring], node)]

    assert names("a", "a", "b", "c", "d") == ["b", "c"]
    assert names("c", "a", "b", "c", "d") == ["d", "a"]
    assert names("d", "a", "b", "c", "d") == ["a", "b"]
    assert names("b", "a", "b") == ["a"]
    assert names("a", "a") == []
    assert names("bb", "a", "b", "c", "d") == ["c", "d"]
