"""A raw disk that ends before its partitions is refused; what only looks so is taken."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novacron.disk import partition_table
from novacron.disk.errors import Unacceptable
from novacron.disk.formats import detect
from novacron.disk.partition_table import Partition, check_whole, partitions
from novacron.model.image import ImageFormat

SIZE = 8 << 20


def mbr(*entries: tuple[int, int, int], size: int = SIZE) -> bytearray:
    """Return a disk with partitions of these kinds, first sectors and numbers of sectors."""
    disk = bytearray(size)
    table = b"".join(struct.pack("<B3sB3sII", 0, bytes(3), kind, bytes(3), *place) for kind, *place in entries)
    disk[446:512] = table.ljust(64, b"\0") + b"\x55\xaa"
    return disk


def gpt(*entries: tuple[int, int], sector: int = 512, protective: int = 0xFFFFFFFF) -> bytearray:
    """Return a disk with a GPT, with partitions between these sectors."""
    disk = mbr((0xEE, 1, protective))
    table = b"".join(b"\1" * 32 + struct.pack("<QQ", *entry) + bytes(80) for entry in entries).ljust(16384, b"\0")
    disk[2 * sector : 2 * sector + len(table)] = table
    header = struct.pack(
        "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, SIZE // sector - 1, 34, SIZE // sector - 34, bytes(16),
        2, 128, 128, zlib.crc32(table),
    )  # fmt: skip
    disk[sector : sector + 92] = header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]
    return disk


@pytest.mark.parametrize(
    "disk",
    [
        mbr((0x83, 2048, 14336)), mbr((0x83, 2048, 64), (0x0F, 8192, 8192)), gpt((2048, 16000)),
        gpt((6, 2000), sector=4096),
    ],
    ids=["MBR", "extended", "GPT", "GPT of 4096-byte sectors"],
)  # fmt: skip
def test_a_disk_cut_to_half_is_refused(disk: bytearray) -> None:
    assert detect(io.BytesIO(disk)) is ImageFormat.RAW
    check_whole(io.BytesIO(disk))
    with pytest.raises(Unacceptable, match=r"cut off: .* its partition \d ends at \d+; .* --format raw if it is whole"):
        check_whole(io.BytesIO(disk[: SIZE // 2]))


def test_partitions_are_read_of_a_gpt_and_of_an_mbr_without_the_entry_that_protects_one() -> None:
    assert partitions(io.BytesIO(gpt((2048, 4095), (4096, 16000)))) == [
        Partition(1, 1 << 20, 2 << 20),
        Partition(2, 2 << 20, 16001 * 512),
    ]
    assert partitions(io.BytesIO(mbr((0xEE, 1, 99), (0x83, 2048, 2048)))) == [Partition(2, 1 << 20, 2 << 20)]
    assert partitions(io.BytesIO(bytes(4096))) == []


def test_what_only_seems_to_be_cut_off_is_taken() -> None:
    squashfs = mbr((0x83, 2048, 65536))
    squashfs[1 << 20 : (1 << 20) + 48] = b"hsqs".ljust(40, b"\0") + struct.pack("<Q", 1 << 20)
    check_whole(io.BytesIO(squashfs))
    with pytest.raises(Unacceptable):
        check_whole(io.BytesIO(squashfs[: 3 << 19]))
    hybrid_cd = mbr((0x17, 0, 1 << 20))
    hybrid_cd[32769:32774] = b"CD001"
    check_whole(io.BytesIO(hybrid_cd))
    fat = mbr((0x83, 2048, 1 << 20))
    fat[11:17] = struct.pack("<HBHB", 512, 4, 1, 2)  # code is where a table would be
    check_whole(io.BytesIO(fat))
    damaged = gpt((2048, 1 << 30))
    damaged[600] ^= 1
    check_whole(io.BytesIO(damaged))
    check_whole(io.BytesIO(gpt((2048, 16000), protective=1 << 31)))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2047), st.integers(0, 255)), max_size=8), st.booleans())
def test_a_damaged_partition_table_never_crashes(changes: list[tuple[int, int]], fixed: bool) -> None:
    disk = gpt((2048, 16000))
    for at, value in changes:
        disk[at] = value
    if fixed:  # a hostile one has the right checksum
        disk[528:532] = bytes(4)
        disk[528:532] = struct.pack("<I", zlib.crc32(disk[512:604]))
    try:
        partition_table.check_whole(io.BytesIO(disk))
    except Unacceptable as error:
        assert "its partition" in str(error)
