"""How a VM's disk comes from a point of a replica on this node: the point's layers become layers below its own.

Nothing is copied, and the replica stays as it is; layers that a VM has, too, are not merged any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from novacron.agent.actions import Action, doing
from novacron.agent.replicas.points import Point
from novacron.agent.vm import firmware_state, restored_disk
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.directory import VmDirectory, shared_name
from novacron.disk import overlay
from novacron.disk.errors import Unacceptable
from novacron.model import limits
from novacron.model.replica_source import ReplicaSource
from novacron.model.waiting import WaitCode

UNFINISHED = "replica.qcow2"
"""The VM's own layer, until all below it is there."""


async def make(context: VmContext, source: ReplicaSource, vm: str) -> None:
    """Give a VM that has no disk yet that of a point of a replica of ``vm``, whole or not at all.

    Raises MachineFailed, Unacceptable, OverlayFailed, BadState, NoAccount, OSError.
    """
    home = context.machine.home
    home.make()
    kept = context.services.replicas.find(source.replica, vm)
    with doing(Action.RESTORE, trace=context.trace, vm=context.vm, replica=source.replica):
        await kept.open()
        async with kept.lock:
            point = kept.points.point(source.point)
            if point is None and source.or_newest and kept.points.points:
                point = kept.points.points[-1]
            layers = None if point is None else await asyncio.to_thread(kept.points.layers_of, point.number)
            if not layers or point is None:
                raise Unacceptable(f"point {source.point} of its replica is no longer on this node", WaitCode.FILE_LOST)
            if len(layers) > limits.SHARED_LAYERS_MAX:
                raise Unacceptable(f"its replica has {len(layers)} layers, too many for a disk", WaitCode.STEP_FAILED)
            await asyncio.to_thread(_link, layers, home)
        await _give_firmware(context, point)
        await overlay.create_blank(home.path / UNFINISHED, overlay.size_bytes(layers[-1]), None)
        await restored_disk.give_layer(home, home.path / UNFINISHED)


def _link(layers: list[Path], home: VmDirectory) -> None:
    for path in home.shared():
        path.unlink()
    for number, layer in enumerate(layers):
        path = home.path / shared_name(number)
        with contextlib.suppress(FileExistsError):
            os.link(layer, path)
        os.chown(path, os.geteuid(), os.getegid())
        path.chmod(0o400)


async def _give_firmware(context: VmContext, point: Point) -> None:
    remembered = await asyncio.to_thread(firmware_state.unpacked, context.spec(), point.state)
    await restored_disk.give_firmware(context, remembered)
