"""Replicas on their node: what their VMs left there is kept until it can be used."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from novacron.agent.replication.receiver import ReplicaReceivers
from novacron.disk.errors import Unacceptable
from novacron.disk.images import LocalImage
from novacron.model.replica import ReplicaPhase
from novacron.model.waiting import WaitCode
from novacron.wire import messages as wire
from tests.support.agent import services_in
from tests.unit.test_replica_points import SIZE, image, layer

__all__ = ["image"]
REPLICA = wire.ReplicaKept("replica-1", "vm-a", ReplicaPhase.FOLLOWING, "host-b", 2, "tiny", "sha256:x", 0, bytes(32))


async def test_what_a_vm_left_outlives_the_time_while_its_image_is_missing(image: Path, tmp_path: Path) -> None:
    host = services_in(tmp_path)
    keeper, shelf = ReplicaReceivers(host, Mock()), host.replicas
    kept = shelf.find(REPLICA.id, REPLICA.vm)
    assert shelf.keep_former("vm-a", [layer(tmp_path / "own", "-P 1 0 64k")])
    held = host.images
    another = Mock(spec=LocalImage, disk=image, info=Mock(disk_bytes=SIZE), is_=lambda digest: digest != "sha256:x")
    for missing in ({}, {"tiny": another}):
        held.update(missing)
        with pytest.raises(Unacceptable, match="does not hold image tiny") as refused:
            await keeper._adopt(REPLICA, kept)
        assert refused.value.code is WaitCode.IMAGE_MISSING and shelf.former("vm-a").exists()
    held["tiny"] = Mock(spec=LocalImage, disk=image, info=Mock(disk_bytes=SIZE), is_=lambda digest: True)
    await keeper._adopt(REPLICA, kept)
    assert kept.points.layer_count == 1 and not shelf.former("vm-a").exists()
