"""Disks that are handed on by a program of QEMU's: encrypted layers read and written, and layers that are hostile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from novacron.agent.vm import sealed_copy
from novacron.agent.vm.sealed_copy import Layers
from novacron.disk import luks, nbd, overlay, qemu_img
from novacron.disk.convert import ToolUser
from novacron.disk.nbd import NbdError
from novacron.disk.nbd_reader import NbdReader
from novacron.disk.served_disk import NotServed
from novacron.platform_key import new_key

MIB, BLOCK = 1 << 20, 64 << 10
KEY = new_key()
USER = ToolUser(qemu_img.unchanged, None)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a name that no socket's address has room for."""
    path = tmp_path / ("long-" * 30)
    path.mkdir()
    return path


async def make_layer(path: Path, writes: dict[int, bytes]) -> None:
    await overlay.create_blank(path, 8 * MIB, KEY)
    async with sealed_copy.writing(path, KEY) as writer:

        def write() -> None:
            for offset, content in writes.items():
                writer.write(offset, content)
            writer.zero(2 * MIB, MIB)
            writer.flush()

        await asyncio.to_thread(write)


async def test_encrypted_layers_over_an_encrypted_image_are_read_as_the_guest_would(directory: Path) -> None:
    image, plain = directory / "image.luks", random.randbytes(4 * MIB)
    (directory / "plain").write_bytes(plain)
    await luks.encrypt(directory / "plain", image, KEY, 60)
    written = random.randbytes(BLOCK)
    await make_layer(directory / "layer", {MIB: written, 6 * MIB: written})
    assert written not in (directory / "layer").read_bytes(), "it is encrypted"
    expected = bytearray(plain + bytes(4 * MIB))
    expected[MIB : MIB + BLOCK] = expected[6 * MIB : 6 * MIB + BLOCK] = written
    expected[2 * MIB : 3 * MIB] = bytes(MIB)
    before = set(directory.iterdir())
    async with sealed_copy.opened(Layers(image, KEY, (directory / "layer",), KEY), directory, USER) as disk:
        assert disk.size_bytes == 8 * MIB
        assert await asyncio.to_thread(disk.read, 0, 8 * MIB) == expected
        extents = await asyncio.to_thread(lambda: list(disk.data_extents()))
        assert set(directory.iterdir()) == before, "nobody else finds a socket"
    assert extents == [(0, 2 * MIB), (3 * MIB, MIB), (6 * MIB, BLOCK)], "holes and zeros are not read"
    async with sealed_copy.opened(Layers(None, None, (directory / "layer",), KEY), directory, USER) as disk:
        assert await asyncio.to_thread(disk.read, 0, BLOCK) == bytes(BLOCK), "an increment is the layer alone"


async def test_a_wrong_key_or_a_damaged_layer_is_said_and_leaves_no_process(directory: Path) -> None:
    await make_layer(directory / "layer", {0: b"x" * 512})
    (directory / "damaged").write_bytes(b"QFI\xfb" + os.urandom(1 << 16))
    for layer, key, words in (("layer", new_key(), "Invalid password"), ("damaged", KEY, "can't be opened")):
        with pytest.raises(NotServed, match=words):
            async with sealed_copy.opened(Layers(None, None, (directory / layer,), key), directory, USER):
                raise AssertionError("it was opened")
    own = await asyncio.to_thread(lambda: Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    names = [Path(f"/proc/{pid}/comm").read_text() for pid in own if Path(f"/proc/{pid}").exists()]
    assert not any(name.startswith("qemu-storage") for name in names)


async def test_a_layer_that_names_another_file_of_the_host_does_not_show_it(directory: Path) -> None:
    secret = directory / "secret"
    secret.write_bytes(b"secret of the host".ljust(BLOCK, b"."))
    hostile = directory / "hostile"
    await qemu_img.run(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(secret), str(hostile), str(BLOCK)], 60)
    async with sealed_copy.opened(Layers(None, None, (hostile,), None), directory, USER) as disk:
        assert await asyncio.to_thread(disk.read, 0, BLOCK) == bytes(BLOCK)


Answers = Callable[[socket.socket], None]


@contextlib.contextmanager
def server_that(answers: Answers) -> Iterator[socket.socket]:
    """Yield a connection to a server that agrees to everything, and then does this."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs, contextlib.suppress(OSError):
            theirs.sendall(nbd.MAGIC + nbd.OPTION_MAGIC + struct.pack("!H", 3))
            nbd.receive(theirs, 4)
            for _ in range(3):
                _, option, length = struct.unpack("!8sII", nbd.receive(theirs, 16))
                nbd.receive(theirs, length)
                context, info = struct.pack("!I", 7) + b"base:allocation", struct.pack("!HQH", 0, MIB, 1)
                replies = {10: [(4, context)], 7: [(3, info)]}
                for kind, body in [*replies.get(option, []), (1, b"")]:
                    theirs.sendall(struct.pack("!QIII", nbd.REPLY_MAGIC, option, kind, len(body)) + body)
            nbd.receive(theirs, 28)
            answers(theirs)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join()


def chunk(kind: int, body: bytes, flags: int = 1, handle: int = 1) -> bytes:
    return struct.pack("!IHHQI", 0x668E33EF, flags, kind, handle, len(body)) + body


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (chunk(1, struct.pack("!Q", 0) + b"x" * 8192), "a different part of the disk"),
        (chunk(1, struct.pack("!Q", MIB) + b"x"), "a different part of the disk"),
        (chunk(2, struct.pack("!QI", 0, 1 << 31)), "a different part of the disk"),
        (chunk(1, struct.pack("!Q", 0) + b"x"), "answered with 1 of 4096 bytes"),
        (chunk(1, struct.pack("!Q", 0), handle=9), "malformed"),
        (struct.pack("!IHHQI", 0x668E33EF, 1, 1, 1, 1 << 31), "malformed"),
        (chunk(5, b""), "answered a read with 5"),
        (chunk(1 << 15 | 1, struct.pack("!IH", 5, 0)), "can't be read at 0"),
        (b"", "ended in the middle"),
        (chunk(0, b"", flags=0) * (1 << 16), "has no end"),
    ],
)
def test_a_server_that_lies_is_refused_within_limits(said: bytes, words: str) -> None:
    with server_that(lambda connection: connection.sendall(said)) as connection:
        reader = NbdReader(connection, "disk")
        with pytest.raises(OSError, match=words):
            reader.read(0, 4096)


@pytest.mark.parametrize(
    "body", [struct.pack("!III", 7, 0, 0), struct.pack("!III", 8, 4096, 0), struct.pack("!I", 7), b""]
)
def test_a_server_that_does_not_say_where_data_is_makes_no_endless_loop(body: bytes) -> None:
    with server_that(lambda connection: connection.sendall(chunk(5, body))) as connection:
        reader = NbdReader(connection, "disk", timeout_s=5.0)
        with pytest.raises(NbdError, match="where the disk has data"):
            list(reader.data_extents())
