"""A backup's disk read as it is needed: bytes, read-ahead, a repository that is away; offered to QEMU over NBD."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from novacron.agent.repositories.live_disk import (
    AHEAD_BLOCKS_MAX,
    AHEAD_BLOCKS_MIN,
    STREAMS_MAX,
    LiveDisk,
    ReadAhead,
    reader_of_image,
)
from novacron.agent.vm.restore_pace import DOWN, SLOW_READ_S, SPEED_MAX, SPEED_MIN, next_speed
from novacron.backup.disks import BLOCK_BYTES, write_disk
from novacron.backup.key_file import ScryptCost
from novacron.backup.repository import Repository
from novacron.backup.snapshot import File
from novacron.backup.storage import DirectoryStorage
from novacron.disk import nbd
from novacron.disk.nbd_service import NbdService

BLOCKS = 300
COST = ScryptCost(1 << 10, 8, 1)


@pytest.fixture
def content() -> bytes:
    """A disk with zeros, blocks that are alike, and a last block that is shorter."""
    chosen = random.Random(7)
    kinds = (lambda: bytes(BLOCK_BYTES), lambda: b"x" * BLOCK_BYTES, lambda: chosen.randbytes(BLOCK_BYTES))
    return b"".join(chosen.choice(kinds)() for _ in range(BLOCKS)) + chosen.randbytes(BLOCK_BYTES // 2)


class Stored:
    """A disk in a repository."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        path.mkdir()
        self.repository = Repository.create(DirectoryStorage(path), b"secret", COST)
        self.file: File = write_disk(
            self.repository, lambda at, length: content[at : at + length], len(content), [(0, len(content))]
        ).file
        self.repository.flush()

    def hide(self) -> None:
        (self.path / "data").rename(self.path / "hidden")

    def show(self) -> None:
        (self.path / "hidden").rename(self.path / "data")


@pytest.fixture
def stored(tmp_path: Path, content: bytes) -> Stored:
    return Stored(tmp_path / "repository", content)


def test_any_part_of_a_disk_is_read_and_zeros_are_behind_its_end(stored: Stored, content: bytes) -> None:
    disk, chosen = LiveDisk(stored.repository, stored.file), random.Random(3)
    whole = content + bytes(4 * BLOCK_BYTES)
    try:
        for _ in range(100):
            at = chosen.randrange(len(content) + BLOCK_BYTES)
            length = chosen.randrange(1, 3 * BLOCK_BYTES)
            assert disk.read(at, length) == whole[at : at + length]
    finally:
        disk.close()


def test_several_readers_at_once_fetch_each_block_once(stored: Stored, content: bytes) -> None:
    disk, wrong = LiveDisk(stored.repository, stored.file), list[int]()

    def read() -> None:
        for at in range(0, len(content) - BLOCK_BYTES, BLOCK_BYTES):
            if disk.read(at, BLOCK_BYTES) != content[at : at + BLOCK_BYTES]:
                wrong.append(at)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    disk.close()
    packed = sum(path.stat().st_size for path in (stored.path / "data").rglob("*") if path.is_file())
    assert not wrong and disk.fetched_bytes < 1.5 * packed, "blocks that are alike in different requests come again"


def test_blocks_that_the_image_has_are_not_fetched(stored: Stored, content: bytes) -> None:
    half = len(content) // 2 // BLOCK_BYTES * BLOCK_BYTES
    image = content[:half]

    def read(at: int, length: int) -> bytes:
        assert at + length <= half, "not beyond its end"
        return image[at : at + length]

    disk = LiveDisk(stored.repository, stored.file, image=reader_of_image(read, half))
    try:
        for at in range(0, half - AHEAD_BLOCKS_MAX * BLOCK_BYTES, BLOCK_BYTES):
            assert disk.read(at, BLOCK_BYTES) == content[at : at + BLOCK_BYTES]
        assert disk.fetched_bytes == 0
        assert disk.read(len(content) - 512, 512) == content[-512:] and disk.fetched_bytes > 0
    finally:
        disk.close()


def test_a_repository_that_is_away_fails_reads_after_a_while_and_is_read_again_once_it_is_back(
    stored: Stored, content: bytes
) -> None:
    at = next(at for at in range(0, len(content), BLOCK_BYTES) if any(content[at : at + BLOCK_BYTES]))
    disk = LiveDisk(stored.repository, stored.file, hold_s=0.2)
    try:
        stored.hide()
        with pytest.raises(OSError, match="repository"):
            disk.read(at, 512)
        assert disk.trouble is not None
        stored.show()
        assert disk.read(at, 512) == content[at : at + 512]
        assert disk.trouble is None
    finally:
        disk.close()


def test_who_reads_on_is_read_ahead_of_farther_and_farther_and_others_are_not() -> None:
    ahead = ReadAhead()
    far = [ahead.after(number, number) for number in range(8)]
    assert far[0] == AHEAD_BLOCKS_MIN and far == sorted(far) and far[-1] == AHEAD_BLOCKS_MAX
    assert ahead.after(1000, 1001) == AHEAD_BLOCKS_MIN
    assert ahead.after(8, 8) == AHEAD_BLOCKS_MAX, "the first one goes on"
    for number in range(STREAMS_MAX + 1):
        ahead.after(5000 + 10 * number, 5000 + 10 * number)
    assert ahead.after(9, 9) == AHEAD_BLOCKS_MIN, "of many, the oldest is forgotten"


def test_the_copy_gives_way_to_a_guest_that_waits_and_comes_back_step_by_step() -> None:
    assert next_speed(SPEED_MAX, SLOW_READ_S * 2, None) == SPEED_MAX // DOWN
    assert next_speed(SPEED_MIN, SLOW_READ_S * 2, None) == SPEED_MIN, "it never stops"
    speed, steps = SPEED_MIN, 0
    while speed < SPEED_MAX:
        speed, steps = next_speed(speed, 0.0, None), steps + 1
    assert steps <= 12
    assert next_speed(SPEED_MAX, 0.0, 5 << 20) == 5 << 20
    assert next_speed(5 << 20, SLOW_READ_S * 2, 100_000) == 100_000, "a limit is one, whatever the least speed is"


@pytest.fixture
def serve(tmp_path: Path) -> Callable[[int, Callable[[int, int], bytes]], NbdService]:
    def start(size: int, read: Callable[[int, int], bytes]) -> NbdService:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(tmp_path / "nbd.sock"))
        listening.listen(1)
        return NbdService(listening, size, read)

    return start


def image_of(tmp_path: Path, name: str) -> subprocess.CompletedProcess[bytes]:
    source = f"nbd+unix:///?socket={tmp_path / 'nbd.sock'}"
    command = ["qemu-img", "convert", "-f", "raw", "-O", "raw", source, str(tmp_path / name)]
    return subprocess.run(command, capture_output=True, check=False)


def test_qemu_reads_a_disk_that_is_served_and_another_client_after_it(
    tmp_path: Path, serve: Callable[[int, Callable[[int, int], bytes]], NbdService], content: bytes
) -> None:
    size = len(content) // nbd.ALIGNMENT * nbd.ALIGNMENT
    service = serve(size, lambda at, length: content[at : at + length])
    try:
        for name in ("first.raw", "second.raw"):
            assert image_of(tmp_path, name).returncode == 0
            assert (tmp_path / name).read_bytes() == content[:size]
    finally:
        service.close()


def test_what_can_not_be_read_is_an_error_of_that_request_alone(
    tmp_path: Path, serve: Callable[[int, Callable[[int, int], bytes]], NbdService]
) -> None:
    bad = True

    def read(at: int, length: int) -> bytes:
        if bad and at >= 1 << 20:
            raise ValueError("a defect")
        return bytes(length)

    service = serve(4 << 20, read)
    try:
        failed = image_of(tmp_path, "failed.raw")
        assert failed.returncode and b"Input/output error" in failed.stderr
        bad = False
        assert image_of(tmp_path, "whole.raw").returncode == 0
    finally:
        service.close()


def test_a_client_that_speaks_something_else_is_let_go_and_the_next_one_served(
    tmp_path: Path, serve: Callable[[int, Callable[[int, int], bytes]], NbdService]
) -> None:
    service = serve(1 << 20, lambda _at, length: bytes(length))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(tmp_path / "nbd.sock"))
            client.settimeout(10)
            client.sendall(b"GET / HTTP/1.1\r\nHost: nobody at all\r\n\r\n" * 4)
            with contextlib.suppress(ConnectionResetError):
                while client.recv(4096):
                    pass
        assert image_of(tmp_path, "next.raw").returncode == 0
    finally:
        service.close()
