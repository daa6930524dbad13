"""Where a VM's local volumes can go."""

from __future__ import annotations

import msgspec

from novacron.model.node import Node
from novacron.model.volume import Pool, PoolKind, Volume, VolumePhase
from novacron.store.volumes import cannot_carry
from tests.support.fleet import NOW, node


def with_pool(name: str, id: str, free: int = 1 << 30) -> Node:
    record = node(name)
    assert record.status.inventory is not None
    inventory = msgspec.structs.replace(
        record.status.inventory, pools=(Pool("fast", PoolKind.LOCAL, 1 << 40, free, id),)
    )
    return msgspec.structs.replace(record, status=msgspec.structs.replace(record.status, inventory=inventory))


def test_a_local_volume_moves_only_to_another_directory_with_room() -> None:
    volume = Volume(
        "vol-1", "data", "fast", PoolKind.LOCAL, "a", 64, None, None, VolumePhase.READY, "", 64 << 20, "vm-1", "vm", 0,
        False, None, False, None, 1, NOW,
    )  # fmt: skip
    every = {
        "a": with_pool("a", "1"), "same": with_pool("same", "1"), "full": with_pool("full", "2", 1 << 20),
        "none": node("none"), "good": with_pool("good", "3"),
    }  # fmt: skip
    reasons = {name: why for name, other in every.items() if (why := cannot_carry(other, every, [volume])) is not None}
    assert reasons.keys() == {"same", "full", "none"}
    assert (
        "is the same directory" in reasons["same"]
        and "1 MiB free" in reasons["full"]
        and "has no pool" in reasons["none"]
    )
    assert "does not report" in (cannot_carry(every["good"], {"good": every["good"]}, [volume]) or "")
