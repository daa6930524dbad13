"""Increments: what QEMU records is what changed, whatever happens to it. A real QEMU writes, no guest runs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, cast

import pytest

from novacron.agent.repositories import contents, directory
from novacron.agent.repositories.contents import DiskCopy, EarlierDisk
from novacron.agent.repositories.threads import never
from novacron.agent.vm import increments
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.agent.vm.increments import RECORDED_BYTES_MAX, Increment, choose
from novacron.backup.repository import Repository
from novacron.backup.snapshot import File
from novacron.backup.storage import Kind
from novacron.disk import convert, overlay, qemu_img
from novacron.disk.errors import Unacceptable
from novacron.disk.written_extents import written_extents
from novacron.model.firmware_state import FirmwareState
from novacron.model.image import ImageFormat
from novacron.platform_key import new_key
from novacron.qemu import block, dirty_bitmaps, snapshots
from novacron.qemu.dirty_bitmaps import WriteRecord
from novacron.qemu.monitor import Monitor, MonitorFailed

BLOCK = 64 << 10
BLOCKS = 48
REPOSITORY, VM = "repo-0123456789abcdef", "vm-1"
EARLIER = EarlierDisk("a" * 64, "backup-1", File(BLOCKS * BLOCK, b""))


def record(
    since: str = EARLIER.snapshot, node: str = "disk0", *, dirty: int = BLOCK, works: bool = True
) -> WriteRecord:
    return WriteRecord(node, dirty_bitmaps.name_of(REPOSITORY, since), REPOSITORY, since, dirty, works)


@pytest.mark.parametrize(
    ("records", "earlier", "size", "why"),
    [
        ([], EARLIER, BLOCKS, increments.RECORD_ENDED),
        ([record()], None, BLOCKS, increments.PARENT_GONE),
        ([record("b" * 64)], EARLIER, BLOCKS, increments.RECORD_ENDED),
        ([record(node="disk0-2")], EARLIER, BLOCKS, increments.NEW_LAYER),
        ([record(works=False)], EARLIER, BLOCKS, increments.NOT_WHOLE),
        ([record()], EARLIER, BLOCKS + 1, increments.RESIZED),
        ([record(dirty=RECORDED_BYTES_MAX + BLOCK)], EARLIER, BLOCKS, increments.MUCH),
    ],
)
def test_a_record_that_may_be_wrong_is_not_used_and_it_is_said_why(
    records: list[WriteRecord], earlier: EarlierDisk | None, size: int, why: str
) -> None:
    assert choose(records, "disk0", earlier, size * BLOCK) == (None, why)


@pytest.mark.parametrize("since", [EARLIER.snapshot, EARLIER.backup])
def test_a_record_since_the_parent_is_used(since: str) -> None:
    chosen, why = choose([record(since), record("b" * 64)], "disk0", EARLIER, BLOCKS * BLOCK)
    assert chosen == record(since) and "backup-1" in why


class Disk(NamedTuple):
    """A disk in a QEMU, what is to be on it, and the repository of its backups."""

    monitor: Monitor
    directory: Path
    content: bytearray
    repository: Repository

    async def io(self, command: str) -> None:
        """Do what a guest would do, through the disk's device."""
        said = await self.monitor.execute(
            "human-monitor-command",
            {"command-line": f'qemu-io -d /machine/peripheral/disk0-device/virtio-backend "{command}"'},
        )
        assert not said, said

    async def write(self, what: int, at: int, length: int) -> None:
        """Write bytes, or zeros (0), or let go of blocks (-1)."""
        if what < 0:
            at, length = at // BLOCK * BLOCK, BLOCK
            await self.io(f"discard {at} {length}")
        else:
            await self.io(f"write -P {what} {at} {length}" if what else f"write -z {at} {length}")
        self.content[at : at + length] = bytes([max(what, 0)]) * length

    def machine(self) -> VirtualMachine:
        return cast("VirtualMachine", SimpleNamespace(monitor=self.monitor, pid=1, id=VM))

    async def back_up(self, number: int, *, fails: bool = False) -> Increment:
        """Make a backup; compare the disk that comes out of it."""
        increment, name = Increment(self.machine(), REPOSITORY, f"backup-{number}"), f"copy-{number}.qcow2"
        known = contents.look(self.repository, f"backup-{number}", VM, await increment.points(), never)
        increment.expect(known.earlier, is_first=not known.has_earlier)
        layer, raw, back = (self.directory / file for file in (name, f"raw-{number}", f"back-{number}"))
        await overlay.create_blank(layer, len(self.content), None)
        await block.copy(self.monitor, name, "", planner=increment.plan)
        if increment.record is None:
            below = [self.directory / "base.raw", *sorted(self.directory.glob("disk*.qcow2"))[:-1]]
            await convert.flatten([*below, layer], raw, 0, convert.ToolUser(qemu_img.unchanged, None), ImageFormat.RAW)
            copy = DiskCopy(raw)
        else:
            user = convert.ToolUser(qemu_img.unchanged, None)
            await convert.convert(layer, ImageFormat.QCOW2, raw, len(self.content), 0, user)
            with layer.open("rb") as file:
                changed = tuple(written_extents(file, len(self.content), BLOCKS))
            assert sum(length for _, length in changed) == increment.record.dirty_bytes
            copy = DiskCopy(raw, changed, increment.earlier)
        if fails:
            await increment.give_up()
            return increment
        beside = b"{}", FirmwareState()
        kept = await asyncio.to_thread(
            contents.store, self.repository, (f"backup-{number}", VM), copy, beside, never
        )  # fmt: skip
        await increment.keep(kept.snapshot)
        contents.restore(self.repository, kept.snapshot, back)
        assert hashlib.sha256(back.read_bytes()).digest() == hashlib.sha256(self.content).digest()
        for path in (layer, raw, back):
            path.unlink()
        return increment


@pytest.fixture(scope="module")
def open_repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    opened = directory.open_repository(tmp_path_factory.mktemp("backups") / REPOSITORY, new_key(), begin=True)
    yield opened.repository
    opened.close()


@pytest.fixture
async def disk(tmp_path: Path, open_repository: Repository) -> AsyncIterator[Disk]:
    content = bytearray(random.Random(1).randbytes(BLOCKS * BLOCK))
    for id, _ in list(open_repository.snapshots()):
        open_repository.storage.remove(Kind.SNAPSHOT, id)
    (tmp_path / "base.raw").write_bytes(content)
    await overlay.create_blank(tmp_path / "disk.qcow2", len(content), None)
    node = {
        "driver": "qcow2", "node-name": "disk0", "discard": "unmap", "detect-zeroes": "unmap",
        "file": {"driver": "file", "filename": "disk.qcow2"},
        "backing": {"driver": "raw", "read-only": True, "file": {"driver": "file", "filename": "base.raw"}},
    }  # fmt: skip
    command = [
        "qemu-system-x86_64", "-S", "-accel", "tcg", "-nodefaults", "-display", "none", "-m", "16",
        "-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=disk0,id=disk0-device",
        "-qmp", "unix:qmp,server=on,wait=off",
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, stdin=subprocess.DEVNULL)
    try:
        monitor = await Monitor.connect(
            tmp_path / "qmp", lambda _name, _data: None, lambda: process.returncode is None
        )  # fmt: skip
        yield Disk(monitor, tmp_path, content, open_repository)
        await monitor.close()
    finally:
        process.kill()
        await process.wait()


async def test_an_increment_has_what_was_written_and_a_backup_that_fails_loses_nothing(disk: Disk) -> None:
    assert (await disk.back_up(1)).reason == increments.FIRST
    for what, at in ((7, 3 * BLOCK + 17), (0, 5 * BLOCK), (-1, 9 * BLOCK)):
        await disk.write(what, at, 4096)
    failed = await disk.back_up(2, fails=True)
    assert failed.record is not None
    await disk.write(8, 20 * BLOCK, BLOCK)
    third = await disk.back_up(3)
    assert third.record is not None and third.record.dirty_bytes == 4 * BLOCK
    assert [record.since for record in await dirty_bitmaps.records(disk.monitor)] == [
        id for id, made in disk.repository.snapshots() if "backup-3" in (made.tags or ())
    ]


async def test_an_agent_that_was_killed_before_it_named_a_record_uses_it(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*_: object) -> None:
        raise MonitorFailed("the agent was killed")

    await disk.back_up(1)
    await disk.write(7, 0, 4096)
    with monkeypatch.context() as patched:
        patched.setattr(dirty_bitmaps, "rename", killed)
        await disk.back_up(2)
    await disk.write(8, 2 * BLOCK, 4096)
    third = await disk.back_up(3)
    assert third.record is not None and (third.record.since, third.record.dirty_bytes) == ("backup-2", BLOCK)
    assert len(await dirty_bitmaps.records(disk.monitor)) == 1


async def test_what_is_not_recorded_ends_the_record(disk: Disk) -> None:
    await disk.back_up(1)
    await snapshots.create(disk.monitor, "s1", memory=True)
    before = bytes(disk.content)
    await disk.write(7, 0, BLOCK)
    await snapshots.load(disk.monitor, "s1")
    disk.content[:] = before
    assert (await disk.back_up(2)).reason == increments.RECORD_ENDED, "it was reverted"
    await disk.write(9, BLOCK, 100)
    await snapshots.delete(disk.monitor, "s1")
    await disk.monitor.execute("block_resize", {"node-name": "disk0", "size": (BLOCKS + 2) * BLOCK})
    disk.content.extend(bytes(2 * BLOCK))
    await disk.write(5, BLOCKS * BLOCK + 5, 100)
    assert (await disk.back_up(3)).reason == increments.RESIZED
    await disk.write(4, BLOCKS * BLOCK + 5, 100)
    assert (await disk.back_up(4)).record is not None
    await overlay.create_blank(disk.directory / "disk-next.qcow2", len(disk.content), None)
    await block.put_over(disk.monitor, 2, "disk-next.qcow2", "")
    await disk.write(3, 30 * BLOCK, 100)
    first, second = disk.directory / "disk.qcow2", disk.directory / "disk-next.qcow2"
    first.rename(disk.directory / "disk-0.qcow2"), second.rename(disk.directory / "disk-1.qcow2")
    assert (await disk.back_up(5)).reason == increments.NEW_LAYER
    await disk.write(2, 31 * BLOCK, 100)
    assert (await disk.back_up(6)).record is not None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
async def test_every_backup_of_a_random_history_has_the_disk_as_it_was(disk: Disk, seed: int) -> None:
    rng, kept = random.Random(seed), 0
    print(f"seed {seed}")
    for number in range(20):
        for _ in range(rng.randrange(12)):
            at = rng.randrange(BLOCKS * BLOCK - 2 * BLOCK) // 512 * 512
            await disk.write(rng.randrange(-1, 256), at, rng.choice([512, 4096, BLOCK, 2 * BLOCK]))
        match rng.randrange(6):
            case 0:
                await snapshots.create(disk.monitor, f"s{number}", memory=False)
            case 1 if kept:
                await disk.back_up(1000 + number, fails=True)
            case 2:
                await dirty_bitmaps.end_all(disk.monitor)
            case _:
                pass
        kept += (await disk.back_up(number)).record is not None
    assert kept > 5


def test_a_copy_that_is_no_plain_qcow2_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "copy"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M"], check=True)
    for at, byte in ((0, 0), (7, 2), (15, 9), (23, 15), (28, 1), (35, 1), (39, 200), (79, 2)):
        content = bytearray(path.read_bytes())
        content[at] = byte
        (tmp_path / "hostile").write_bytes(content)
        with (tmp_path / "hostile").open("rb") as file, pytest.raises(Unacceptable):
            written_extents(file, 1 << 20, 10)
    subprocess.run(["qemu-io", "-c", "write 0 64k", "-c", "write 128k 64k", str(path)], check=True, capture_output=True)
    with path.open("rb") as file:
        assert written_extents(file, 1 << 20, 2) == [(0, BLOCK), (2 * BLOCK, BLOCK)]
        with pytest.raises(Unacceptable, match="more than 1 extents"):
            written_extents(file, 1 << 20, 1)
