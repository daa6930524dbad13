"""Two layers of a disk that become one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from novacron.disk import qemu_img
from novacron.disk.convert import LIMITS, ToolUser, let_read
from novacron.disk.errors import Unacceptable
from novacron.disk.files import sync
from novacron.disk.qemu_img import ImgFailed, Invocation
from novacron.model.waiting import WaitCode

MERGE_S_MAX = 6 * 3600.0


async def merge(below: Sequence[Path], lower: Path, upper: Path, spare_bytes: int, user: ToolUser) -> None:
    """Write all of a qcow2 layer into the one below it; ``below`` that are a raw image and further layers. What the
    headers say of other files is not followed. May be done again. Raises Unacceptable, OSError."""
    with contextlib.ExitStack() as stack:
        node: dict[str, object] | None = None
        descriptors = []
        for path, flags in (*((path, os.O_RDONLY) for path in below), (lower, os.O_RDWR), (upper, os.O_RDWR)):
            descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
            stack.callback(os.close, descriptor)
            descriptors.append(descriptor)
            _hand_over(descriptor, user.uid, writable=flags == os.O_RDWR)
            file = {"driver": "file", "filename": f"/proc/self/fd/{descriptor}", "locking": "off"}
            node = {"driver": "raw" if node is None else "qcow2", "file": file, **({"backing": node} if node else {})}
        room = (await asyncio.to_thread(shutil.disk_usage, lower)).free

        def lack_of_room() -> str | None:
            free = shutil.disk_usage(lower).free
            return f"there is no space to merge points: {room} bytes were free" if free < spare_bytes else None

        invocation = Invocation(user.wrap, LIMITS, descriptors)
        try:
            await qemu_img.run(
                ["commit", "-q", "-d", "-t", "writeback", f"json:{json.dumps(node)}"],
                MERGE_S_MAX,
                invocation,
                lack_of_room,
            )
        except ImgFailed as error:
            raise Unacceptable(f"points of a replica can't be merged: {error}", WaitCode.STEP_FAILED) from error
    await sync(lower)


def _hand_over(descriptor: int, owner: int | None, *, writable: bool) -> None:
    if writable:
        os.fchmod(descriptor, 0o600)  # a VM may have had it as its own
        if owner is not None:
            os.fchown(descriptor, owner, owner)
    else:
        let_read(descriptor, owner)
