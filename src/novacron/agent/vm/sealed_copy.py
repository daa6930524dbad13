"""The copy of a VM's disk that is encrypted on its node: read, and written, without lying there in the clear."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from novacron.agent.vm.firmware_state import FILE_BYTES_MAX, BadState
from novacron.disk import luks, served_disk
from novacron.disk.convert import LIMITS, ToolUser, let_read
from novacron.disk.files import is_plain
from novacron.disk.nbd import NbdClient
from novacron.disk.nbd_reader import NbdReader
from novacron.disk.qemu_img import Invocation
from novacron.disk.served_disk import Node, ServedDisk
from novacron.model.encryption import DataKey
from novacron.qemu import firmware


class Layers(NamedTuple):
    """What a disk consists of."""

    image: Path | None
    """What lies below all others, raw; None: nothing."""
    image_key: DataKey | None
    above: tuple[Path, ...]
    """The lowest first."""
    key: DataKey | None
    """Of the layers above the image."""


@contextlib.asynccontextmanager
async def opened(layers: Layers, directory: Path, user: ToolUser) -> AsyncIterator[NbdReader]:
    """Have a disk open that stands still. ``directory`` is one that nobody else can write to. Raises OSError."""
    with contextlib.ExitStack() as stack:
        descriptors = list[int]()

        def readable(path: Path) -> int:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            stack.callback(os.close, descriptor)
            descriptors.append(descriptor)
            let_read(descriptor, user.uid)
            return descriptor

        node: Node | None = None
        if layers.image is not None:
            node = served_disk.raw(readable(layers.image), layers.image_key)
        for path in layers.above:
            node = served_disk.qcow2(readable(path), node, layers.key)
        assert node is not None
        keys = {key.id: key for key in (layers.image_key, layers.key) if key is not None}
        disk, invocation = ServedDisk(node, tuple(keys.values())), Invocation(user.wrap, LIMITS, descriptors)
        async with served_disk.served(disk, directory, invocation, NbdReader) as reader:
            yield reader


async def variables(directory: Path, key: DataKey | None, user: ToolUser) -> bytes | None:
    """Return the variables of the UEFI firmware whose file in ``directory`` is encrypted; None: it is not, or there is
    none. Raises BadState, OSError."""
    path = directory / firmware.NVRAM
    if key is None or not is_plain(path) or not await asyncio.to_thread(luks.is_encrypted, path):
        return None
    async with opened(Layers(path, key, (), None), directory, user) as reader:
        if reader.size_bytes > FILE_BYTES_MAX:
            raise BadState(f"{path.name} is too large")
        return await asyncio.to_thread(reader.read, 0, reader.size_bytes)


class LayerWriter:
    """Writes to an encrypted layer from any thread. All raise OSError."""

    def __init__(self, client: NbdClient) -> None:
        self._client, self._lock = client, threading.Lock()

    def write(self, offset: int, content: bytes) -> None:
        with self._lock:
            self._client.write(offset, content)

    def zero(self, offset: int, length: int) -> None:
        """Have the layer say that there are zeros, whatever is below."""
        with self._lock:
            self._client.zero(offset, length)

    def flush(self) -> None:
        with self._lock:
            self._client.flush()


@contextlib.asynccontextmanager
async def writing(layer: Path, key: DataKey) -> AsyncIterator[LayerWriter]:
    """Have a new layer open that is encrypted, to be written to. Raises OSError."""
    descriptor = os.open(layer, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        disk = ServedDisk(served_disk.qcow2(descriptor, None, key, is_writable=True), (key,), is_writable=True)
        invocation = Invocation(limits=LIMITS, descriptors=(descriptor,))
        async with served_disk.served(disk, layer.parent, invocation, NbdClient) as client:
            yield LayerWriter(client)
    finally:
        os.close(descriptor)
