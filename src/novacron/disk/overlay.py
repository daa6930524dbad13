"""A VM's own layer of its disk: what it wrote, over the disk of its image, which stays as it is (qcow2).

The layer may have snapshots inside. What its header says of other files is never followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from pathlib import Path

from novacron import child_environment
from novacron.disk import luks, qemu_img
from novacron.disk.files import make_durable, sync
from novacron.disk.qemu_img import ImgFailed, Wrap
from novacron.model.encryption import DataKey

TIMEOUT_S = 60.0
COPY_S_MAX = 6 * 3600.0
MAGIC = b"QFI\xfb"
SIZE_AT = 24


class OverlayFailed(Exception):
    """The layer could not be made, or changed: says why."""


async def _img(
    command: str, *arguments: str, key: DataKey | None = None, wrap: Wrap = qemu_img.unchanged,
    directory: Path | None = None,
) -> bytes:  # fmt: skip
    try:
        return await luks.run(command, arguments, key, TIMEOUT_S, wrap, directory)
    except ImgFailed as error:
        raise OverlayFailed(str(error)) from error


async def create(path: Path, below: Path, size_bytes: int, key: DataKey | None) -> None:
    """Make an empty layer at ``path`` over the raw disk ``below``, whole or not at all; with a ``key`` it is encrypted.
    Raises OverlayFailed."""
    scratch = path.with_suffix(".new")
    options = ("-q", "-f", "qcow2", *luks.new_layer(key), "-F", "raw", "-b", str(below))
    await _img("create", *options, str(scratch), str(size_bytes), key=key)
    await asyncio.to_thread(scratch.rename, path)
    await asyncio.to_thread(make_durable, path.parent)


async def create_blank(path: Path, size_bytes: int, key: DataKey | None) -> None:
    """Make an empty layer at ``path`` that says nothing of what is below it, whole or not at all; with a ``key`` it is
    encrypted. Raises OverlayFailed."""
    scratch = path.with_suffix(".new")
    await _img("create", "-q", "-f", "qcow2", *luks.new_layer(key), str(scratch), str(size_bytes), key=key)
    await asyncio.to_thread(scratch.rename, path)


def size_bytes(path: Path) -> int:
    """Return how large the disk in a layer is (QEMU's docs/interop/qcow2.txt). Raises OverlayFailed, OSError."""
    with path.open("rb") as file:
        head = file.read(SIZE_AT + 8)
    if len(head) < SIZE_AT + 8 or not head.startswith(MAGIC):
        raise OverlayFailed(f"{path.name} is damaged: it does not start like a qcow2")
    return int(struct.unpack_from(">Q", head, SIZE_AT)[0])


async def copy(path: Path, to: Path) -> None:
    """Copy a layer that nobody writes to, with all that is in it. Raises OverlayFailed, OSError."""
    command = ("cp", "--reflink=auto", "--sparse=always", "--", str(path), str(to))
    process: asyncio.subprocess.Process | None = None
    try:
        async with asyncio.timeout(COPY_S_MAX):
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE, env=child_environment.clean(),
            )  # fmt: skip
            _, said = await process.communicate()
        if process.returncode:
            raise OverlayFailed(f"the disk can't be copied: {said.decode(errors='replace').strip()[-300:]}")
    except BaseException:
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        await asyncio.to_thread(to.unlink, missing_ok=True)
        raise
    await sync(to)


class Snapshots:
    """The snapshots in the layer of a VM that does not run. ``wrap`` makes commands its own user's; ``key`` is that of
    an encrypted layer. All raise OverlayFailed."""

    def __init__(self, path: Path, wrap: Wrap, key: DataKey | None) -> None:
        file = {"driver": "file", "filename": path.name}
        node = {"driver": "qcow2", "backing": None, "file": file, **luks.layer_options(key)}
        self._name, self._directory, self._wrap, self._key = f"json:{json.dumps(node)}", path.parent, wrap, key

    async def names(self) -> set[str]:
        said = await self._img("info", "--output", "json")
        try:
            return {str(snapshot["name"]) for snapshot in json.loads(said).get("snapshots", ())}
        except (ValueError, KeyError, TypeError):
            raise OverlayFailed("its snapshots can't be read") from None

    async def create(self, name: str) -> None:
        await self._do("-c", name)

    async def apply(self, name: str) -> None:
        """Have the disk be as it was then."""
        await self._do("-a", name)

    async def delete(self, name: str) -> None:
        await self._do("-d", name)

    async def _do(self, option: str, name: str) -> None:
        await self._img("snapshot", "-q", option, name)

    async def _img(self, command: str, *options: str) -> bytes:
        return await _img(command, *options, self._name, key=self._key, wrap=self._wrap, directory=self._directory)
