"""Disks as streams: recorded writes are replayed unchanged, also over NBD with QEMU's own server and client."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novacron.disk.blocks import data_places, pages_of
from novacron.disk.files import NewFile, tell
from novacron.disk.images import scan
from novacron.disk.nbd import NbdClient, NbdExport
from novacron.disk.stream import (
    HEAD,
    PAGE,
    VERSION,
    DiskPlayer,
    DiskRecorder,
    DiskSplitter,
    Head,
    StreamError,
    VolumeInfo,
    _head,
    _range,
    _word,
)
from novacron.dwcp.page_codec import PageHash
from novacron.dwcp.page_decoder import Decoder
from novacron.dwcp.page_encoder import Encoder
from novacron.dwcp.page_ring import PageRing
from tests.waiting import until

PAGES = 64
SIZE = PAGES * PAGE
INFO = VolumeInfo("disk0", SIZE, "image")
KEY = b"k" * 32


class Kept:
    """A volume in memory."""

    def __init__(self, size: int = SIZE) -> None:
        self.data = bytearray(b"\xff" * size)
        self.flushed = False

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.data[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self.data[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        self.flushed = True


def recorded(recorder: DiskRecorder) -> list[bytes]:
    """Return all that is recorded, up to its end."""
    return list(iter(recorder.read, b""))


steps = st.lists(
    st.tuples(
        st.integers(0, 1), st.sampled_from(["write", "zero"]), st.integers(0, PAGES - 1), st.integers(1, PAGES),
        st.integers(0, 3),
    ),
    max_size=12,
)  # fmt: skip


@settings(max_examples=60)
@given(steps)
def test_recorded_writes_are_replayed_unchanged_through_the_page_codec(
    taken: list[tuple[int, str, int, int, int]],
) -> None:
    infos = [INFO, VolumeInfo("disk1", SIZE)]
    recorder, model = DiskRecorder(infos), [Kept(), Kept()]
    chunks: list[bytes] = []
    reading = threading.Thread(target=lambda: chunks.extend(recorded(recorder)))
    reading.start()
    for volume, what, first, count, seed in taken:
        offset, length = first * PAGE, min(count, PAGES - first) * PAGE
        recorder.select(volume)
        if what == "write":
            data = b"".join(bytes([seed * (number % 3)]) * PAGE for number in range(length // PAGE))
            recorder.write(offset, data)
            model[volume].write(offset, data)
        else:
            recorder.zero(offset, length)
            model[volume].zero(offset, length)
    recorder.end()
    reading.join()
    played = [Kept(), Kept()]
    player, splitter = DiskPlayer(lambda head: played if head.volumes == tuple(infos) else []), DiskSplitter()
    encoder, decoder = Encoder(PageHash(KEY), None), Decoder(PageHash(KEY), None, ())
    for chunk in chunks:
        part, runs = splitter.split(chunk)
        assert part == chunk
        piece = encoder.encode(part, runs)
        raw = decoder.decode(piece.finish(0, True, piece.body))
        assert raw == chunk
        player.write(raw)
    player.finish()
    assert [volume.data for volume in played] == [volume.data for volume in model]
    assert all(volume.flushed for volume in played)


def test_zero_pages_and_repeated_pages_cost_almost_nothing(tmp_path: Path) -> None:
    recorder, splitter = DiskRecorder([INFO]), DiskSplitter()
    page = os.urandom(PAGE)
    recorder.write(0, page * 8 + bytes(8 * PAGE))
    recorder.zero(16 * PAGE, 40 * PAGE)
    recorder._put(b"")
    encoder = Encoder(PageHash(KEY), PageRing(tmp_path))
    sizes = [len(encoder.encode(*splitter.split(chunk)).body) for chunk in recorded(recorder)]
    assert sum(sizes) < PAGE + 1000, "a page, if it did not look random"
    assert encoder.savings.zero == 8 and encoder.savings.session == 7


def head(*volumes: VolumeInfo, version: int = VERSION) -> bytes:
    import msgspec

    body = msgspec.msgpack.encode(Head(version, volumes))
    return _head.pack(HEAD, len(body)) + body


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"", "without a head"),
        (b"x" * 100, "without a head"),
        (head(INFO)[:-1], "without a head"),
        (_head.pack(HEAD, 3) + b"\xc1\xc1\xc1", "can't be read"),
        (head(INFO, version=2), "version 2"),
        (head(), "0 volumes"),
        (head(INFO) + _word.pack(SIZE | 8) + bytes(PAGE), "not whole pages"),
        (head(INFO) + _range.pack(PAGE | 4, SIZE), "not whole pages"),
        (head(INFO) + _range.pack(4, 100), "not whole pages"),
        (head(INFO) + _range.pack(4, 0), "not whole pages"),
        (head(INFO) + _range.pack(4, 1 << 63), "not whole pages"),
        (head(INFO) + _word.pack(1 << 12 | 0x20), "is unknown"),
        (head(INFO) + _word.pack(0x40), "is unknown"),
        (head(INFO) + b"\0\0\0", "cut off"),
        (head(INFO) + _word.pack(8) + b"short", "not whole pages"),
    ],
)
def test_a_hostile_stream_writes_nothing_outside_its_volumes(stream: bytes, why: str) -> None:
    volume = Kept()
    with pytest.raises(StreamError, match=why):
        DiskPlayer(lambda _: [volume]).write(stream)
    assert volume.data == b"\xff" * SIZE


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_stream_either_fails_or_writes_within_its_volume(tail: bytes) -> None:
    volume = Kept()
    with contextlib.suppress(StreamError):
        DiskPlayer(lambda _: [volume]).write(head(INFO) + tail)
    assert len(volume.data) == SIZE


def test_a_stream_that_never_began_is_not_finished() -> None:
    with pytest.raises(StreamError, match="before its head"):
        DiskPlayer(lambda _: []).finish()


@pytest.mark.parametrize(("offset", "length"), [(1, PAGE), (0, PAGE - 1), (SIZE, PAGE), (-PAGE, PAGE)])
def test_only_whole_pages_of_the_volume_are_recorded(offset: int, length: int) -> None:
    with pytest.raises(StreamError):
        DiskRecorder([INFO]).write(offset, bytes(length))


def test_a_recorder_without_a_reader_does_not_wait_forever() -> None:
    recorder = DiskRecorder([INFO])
    threading.Timer(0.3, recorder.abort).start()
    with pytest.raises(BrokenPipeError):
        for _ in range(100):
            recorder.write(0, bytes(PAGE))


def test_files_arrive_with_their_holes_and_their_length(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    with source.open("wb") as file:
        file.write(b"begin" * 1000)
        file.seek(3 << 20)
        file.write(os.urandom(70_001))
        file.truncate(5 << 20 | 17)
    size = source.stat().st_size
    recorder, chunks = DiskRecorder([VolumeInfo("f", size)]), list[bytes]()
    reading = threading.Thread(target=lambda: chunks.extend(recorded(recorder)))
    reading.start()
    tell(source, size, recorder)
    recorder.end()
    reading.join()
    player = DiskPlayer(lambda info: [NewFile(copy, info.volumes[0].size_bytes)])
    for chunk in chunks:
        player.write(chunk)
    player.finish()
    assert copy.read_bytes() == source.read_bytes()
    assert copy.stat().st_blocks * 512 < 300_000, "holes stay holes"
    assert len(data_places(source)) == len(data_places(copy)) == len(list(pages_of(source)))


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def accepts(path: Path) -> bool:
    try:
        connected(path).close()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def listening(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen(1)
    return server


@contextlib.contextmanager
def qemu_export(directory: Path) -> Iterator[tuple[Path, Path]]:
    """A disk in a file, and QEMU's own server that exports it on a socket."""
    disk, path = directory / "disk", directory / "nbd.sock"
    with disk.open("wb") as file:
        file.truncate(SIZE)
    server = subprocess.Popen(["qemu-nbd", "-f", "raw", "-x", "disk0", "-k", str(path), "--persistent", str(disk)])
    try:
        until(lambda: accepts(path), "QEMU's server answers")  # its socket has a name before it listens
        yield disk, path
    finally:
        server.kill()
        server.wait()


def test_the_client_writes_to_qemus_server(tmp_path: Path) -> None:
    data = os.urandom(SIZE // 2)
    with qemu_export(tmp_path) as (disk, path):
        client = NbdClient(connected(path), "disk0")
        assert client.size_bytes == SIZE
        for offset in range(0, len(data), 2 * PAGE):
            client.write(offset, data[offset : offset + 2 * PAGE])
        client.write(0, b"x" * PAGE)  # over what is still on its way
        client.zero(PAGE, PAGE)
        client.flush()
        assert disk.read_bytes() == b"x" * PAGE + bytes(PAGE) + data[2 * PAGE :] + bytes(SIZE // 2)
        with pytest.raises(OSError, match="target's disk"):  # at once if the answer is fast
            client.write(SIZE, b"x" * PAGE)
            client.flush()
        client.close()
        with pytest.raises(OSError, match="refused export other"):
            NbdClient(connected(path), "other")


def test_qemus_client_writes_to_the_export(tmp_path: Path) -> None:
    source, path, volume = tmp_path / "source", tmp_path / "nbd.sock", Kept()
    source.write_bytes(os.urandom(SIZE // 2) + bytes(SIZE // 2))
    export = NbdExport(listening(path), SIZE, volume)
    target = f"nbd+unix:///disk0?socket={path}"
    subprocess.run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(source), target], check=True)
    export.close()
    assert export.error is None
    assert volume.data == source.read_bytes()


def test_an_export_whose_receiver_fails_closes_the_connection_with_the_reason(tmp_path: Path) -> None:
    class Full(Kept):
        def write(self, offset: int, data: bytes | memoryview) -> None:
            raise OSError("no room")

    source, path = tmp_path / "source", tmp_path / "nbd.sock"
    source.write_bytes(os.urandom(SIZE))
    export = NbdExport(listening(path), SIZE, Full())
    target = f"nbd+unix:///disk0?socket={path}"
    failed = subprocess.run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(source), target], check=False)
    export.close()
    assert failed.returncode != 0 and export.error is not None and "no room" in str(export.error)


def test_an_export_that_nobody_uses_can_be_closed(tmp_path: Path) -> None:
    export = NbdExport(listening(tmp_path / "nbd.sock"), SIZE, Kept())
    export.close()
    assert export.error is None


@pytest.mark.parametrize("size", [0, 4095, 4097])
def test_an_image_whose_disk_ends_within_a_page_is_refused(tmp_path: Path, size: int) -> None:
    import msgspec

    from novacron.disk.images import Manifest, describe

    image = tmp_path / "odd"
    image.mkdir()
    for name, length in (("vmlinuz", 10), ("initrd.img", 10), ("disk.raw", size)):
        (image / name).write_bytes(b"x" * length)
    files = [describe(image / name) for name in ("vmlinuz", "initrd.img", "disk.raw")]
    manifest = Manifest("kernel", files[0], files[1], "", disk=files[2])
    (image / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    images, wrong = scan(tmp_path)
    assert not images and "not a multiple of 4096" in wrong[0]
