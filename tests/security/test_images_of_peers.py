"""A stolen node that gives another image than the one that is meant: the node that asked for it keeps nothing."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from novacron.agent.images import copies
from novacron.agent.settings import AgentSettings
from novacron.disk.images import MANIFEST, LocalImage, Manifest, describe, scan
from novacron.dwcp.listener import Listener
from novacron.wire import messages as wire
from tests.support.dwcp import Ends

NAME, DISK_BYTES = "web", 64 << 10


def make(directory: Path, content: bytes) -> LocalImage:
    """Put an image with a disk of this content into a node's images; return it."""
    target = directory / NAME
    target.mkdir(parents=True)
    (target / "disk.raw").write_bytes(content * DISK_BYTES)
    manifest = Manifest("disk", description="a web server", disk=describe(target / "disk.raw"))
    (target / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return scan(directory)[0][NAME]


def other_bytes(image: LocalImage) -> LocalImage:
    (image.directory / "disk.raw").write_bytes(b"!" * DISK_BYTES)
    return image


def other_image(image: LocalImage) -> LocalImage:
    """A whole one, with a manifest of its own, which it says is the one that is meant."""
    shutil.rmtree(image.directory)
    return msgspec.structs.replace(make(image.directory.parent, b"!"), info=image.info)


def other_place(image: LocalImage) -> LocalImage:
    manifest = msgspec.json.decode((image.directory / MANIFEST).read_bytes(), type=Manifest)
    assert manifest.disk is not None
    moved = msgspec.structs.replace(manifest, disk=msgspec.structs.replace(manifest.disk, path="../other/disk.raw"))
    (image.directory / MANIFEST).write_bytes(msgspec.json.encode(moved))
    return image


def one_more_file(image: LocalImage) -> LocalImage:
    more = image.directory / "more"
    more.write_bytes(b"!")
    return msgspec.structs.replace(image, initrd=more)


def nothing_but_the_manifest(image: LocalImage) -> LocalImage:
    return msgspec.structs.replace(image, disk=None)


def the_right_one(image: LocalImage) -> LocalImage:
    return image


FALSE: dict[Callable[[LocalImage], LocalImage], str] = {
    other_bytes: "not the file that the manifest describes",
    other_image: "a different image",
    other_place: "outside the image",
    one_more_file: "files that the manifest does not name",
    nothing_but_the_manifest: "No such file",
}


async def give_and_take(ends: Ends, directory: Path, change: Callable[[LocalImage], LocalImage]) -> LocalImage | None:
    """Copy an image that node a has changed since the server was told of it to node b; return what b has then. Raises
    CopyFailed."""
    settings = {name: AgentSettings(directory / name, directory / name / "images", name) for name in "ab"}
    image = make(settings["a"].images_dir, b"w")
    meant, given = image.info, change(image)
    listener = Listener(ends.tls("b", server=True), lambda _: "a")
    async with listener.listen("127.0.0.1", 0) as port:
        expected = wire.CopyExpected("copy-1", "a", meant, False)
        order = wire.CopyWanted("copy-1", "b", f"127.0.0.1:{port}", meant)
        pool = ends.pool("a")
        giving = asyncio.create_task(copies.give(pool, order, given, settings["a"]))
        try:
            await copies.take(listener, expected, settings["b"])
        finally:
            await asyncio.gather(giving, return_exceptions=True)
            pool.close()
    return scan(settings["b"].images_dir)[0].get(NAME)


async def test_a_peer_that_gives_the_image_that_is_meant_is_believed(tmp_path: Path) -> None:
    image = await give_and_take(Ends(tmp_path / "ends"), tmp_path, the_right_one)
    assert image is not None and image.disk is not None and image.disk.read_bytes() == b"w" * DISK_BYTES


@pytest.mark.parametrize("change", FALSE, ids=lambda change: change.__name__)
async def test_a_peer_that_gives_another_image_leaves_nothing_behind(
    tmp_path: Path, change: Callable[[LocalImage], LocalImage]
) -> None:
    with pytest.raises(copies.CopyFailed, match=FALSE[change]):
        await give_and_take(Ends(tmp_path / "ends"), tmp_path, change)
    assert list((tmp_path / "b" / "images").iterdir()) == []
