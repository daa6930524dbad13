"""What nodes' processors have in common: with that a VM begins which is to run on any of them."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import msgspec

from novacron.model.cpu import CpuModel, baseline
from novacron.model.node import Inventory
from novacron.store.feed import Change


class _Kind(NamedTuple):
    """Nodes with the same of these may take each other's guests."""

    accelerator: str
    vendor: str


class _Has(NamedTuple):
    kind: _Kind | None
    cpu: CpuModel | None
    passthrough: Any


class CpuBaselines:
    """The processors of all nodes, as the feed says: thousands of nodes share a few models, so each is kept once.

    Nothing is known before ``reset`` was called the first time.
    """

    def __init__(self) -> None:
        self.known = False
        self._of: dict[str, _Has] = {}
        self._models: dict[_Kind, Counter[CpuModel]] = {}

    def reset(self) -> None:
        """All nodes are heard of anew, from here on."""
        self.known = True
        self._of, self._models = {}, {}

    def changed(self, change: Change) -> set[str]:
        """Take what has changed of a node, and return the nodes on which VMs may begin with something else now."""
        body, before = change.body, self._of.pop(change.key, None)
        if body is None:
            return set() if before is None else self._less(before)
        now = self._of[change.key] = _has(body)
        if now == before:
            return set()
        concerned = {change.key} | (set() if before is None else self._less(before))
        if now.kind is not None and now.cpu is not None:
            models = self._models.setdefault(now.kind, Counter())
            models[now.cpu] += 1
            if models[now.cpu] == 1:
                concerned |= self._like(now.kind)
        return concerned

    def common(self, own: Inventory | None) -> CpuModel | None:
        """Return what every node can give which runs guests as this one does; None if it has no inventory."""
        if own is None or own.cpu is None:
            return None
        models = self._models.get(_Kind(own.accelerator.kind, own.cpu.vendor), Counter())
        return baseline({own.cpu, *models}, own.cpu)

    def _less(self, gone: _Has) -> set[str]:
        if gone.kind is None or gone.cpu is None:
            return set()
        models = self._models[gone.kind]
        models[gone.cpu] -= 1
        if models[gone.cpu]:
            return set()
        del models[gone.cpu]
        return self._like(gone.kind)

    def _like(self, kind: _Kind) -> set[str]:
        return {node for node, has in self._of.items() if has.kind == kind}


def _has(body: dict[str, Any]) -> _Has:
    inventory, passthrough = body["status"].get("inventory") or {}, body["spec"].get("passthrough")
    if inventory.get("cpu") is None:
        return _Has(None, None, passthrough)
    cpu = msgspec.convert(inventory["cpu"], CpuModel)
    return _Has(_Kind(inventory["accelerator"]["kind"], cpu.vendor), cpu, passthrough)
