"""What a file that claims to be a disk may say in its header, and what it may not."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.disk import boot_sector
from novacron.disk.convert import DRIVERS
from novacron.disk.errors import Unacceptable
from novacron.disk.formats import DISK_SIGNS, OTHERS, check, detect
from novacron.model.image import ImageFormat
from tests.support import iso

SIZE = 8 << 20
NO_DISKS = (ImageFormat.ISO, ImageFormat.BOOT_FILE)


def create_disk(path: Path, format: ImageFormat, *options: str) -> Path:
    driver = DRIVERS.get(format, format.value)
    subprocess.run(["qemu-img", "create", "-q", "-f", driver, *options, str(path), str(SIZE)], check=True)
    return path


@pytest.mark.parametrize("format", [format for format in ImageFormat if format not in NO_DISKS])
def test_each_format_is_recognised(tmp_path: Path, format: ImageFormat) -> None:
    with create_disk(tmp_path / "disk", format).open("rb") as file:
        assert detect(file) is format
        size = check(file, format)
        if format is ImageFormat.VHDX:
            assert size is None
        else:
            assert size is not None
            assert size == SIZE or (format is ImageFormat.VHD and size > SIZE)


def test_a_fixed_vhd_is_recognised_by_its_footer(tmp_path: Path) -> None:
    path = create_disk(tmp_path / "disk", ImageFormat.VHD, "-o", "subformat=fixed,force_size=on")
    with path.open("rb") as file:
        assert detect(file) is ImageFormat.VHD and check(file, ImageFormat.VHD) == SIZE


@pytest.mark.parametrize("magic", list(OTHERS))
def test_other_kinds_of_file_are_named(magic: bytes) -> None:
    with pytest.raises(Unacceptable, match=re.escape(OTHERS[magic])):
        detect(io.BytesIO(magic + bytes(600)))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"<!DOCTYPE html><html><title>404</title></html>" + bytes(2000), "web page"),
        (b"\n  <html>" + bytes(2000), "web page"),
        (b"<?xml version='1.0'?><Envelope/>" + bytes(2000), "web page or XML"),
        (b"disk.vmdk".ljust(257, b"\0") + b"ustar\0" + bytes(9000), "tar archive"),
        (b"\x01" * 4096 + b"koly" + bytes(508), "Apple disk image"),
        (b"\0", "does not look like a disk"),
        (bytes(511), "does not look like a disk"),
        (b"GIF89a" + bytes(5000), "does not look like a disk"),
        (
            os.urandom(70_000).replace(b"\x55\xaa", b"00").replace(b"H+", b"00").replace(b"HX", b"00"),
            "look like a disk",
        ),
    ],
)
def test_files_that_are_not_disks_are_refused_with_their_kind(data: bytes, why: str) -> None:
    with pytest.raises(Unacceptable, match=why):
        detect(io.BytesIO(data))


@pytest.mark.parametrize(("at", "sign"), DISK_SIGNS)
def test_a_raw_disk_is_recognised_by_its_contents(at: int, sign: bytes) -> None:
    assert detect(io.BytesIO(b"\x01" * at + sign + bytes(70_000))) is ImageFormat.RAW


def test_a_blank_disk_is_a_raw_one(tmp_path: Path) -> None:
    assert detect(io.BytesIO(bytes(1 << 20))) is ImageFormat.RAW
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 1 << 35)  # 32 GiB of nothing cost nothing
    with path.open("rb") as file:
        assert detect(file) is ImageFormat.RAW


@pytest.mark.parametrize("size", [8192, 1 << 20, 5 << 20])
def test_data_behind_a_hole_is_not_blank(tmp_path: Path, size: int) -> None:
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, size)
    with path.open("r+b") as file:
        file.seek(size - 4096)
        file.write(b"SPB5")  # a NetWare pool, which is not recognised
    with path.open("rb") as file, pytest.raises(Unacceptable, match="does not look like a disk"):
        detect(file)


def test_a_qcow2_over_another_file_is_refused(tmp_path: Path) -> None:
    path = create_disk(tmp_path / "disk", ImageFormat.QCOW2, "-u", "-F", "raw", "-b", "/etc/shadow")
    with path.open("rb") as file, pytest.raises(Unacceptable, match="has a backing file"):
        check(file, ImageFormat.QCOW2)


def test_a_qcow2_with_its_data_elsewhere_is_refused(tmp_path: Path) -> None:
    option = f"data_file={tmp_path / 'data'},data_file_raw=on"
    path = create_disk(tmp_path / "disk", ImageFormat.QCOW2, "-o", option)
    with path.open("rb") as file, pytest.raises(Unacceptable, match="external data file"):
        check(file, ImageFormat.QCOW2)


def test_a_vmdk_with_a_parent_or_other_files_is_refused(tmp_path: Path) -> None:
    sparse = create_disk(tmp_path / "disk", ImageFormat.VMDK).read_bytes()
    for old, new in (
        (b"parentCID=ffffffff", b"parentCID=12345678"),
        (b'createType="monolithicSparse"', b'createType="monolithicFlat"  '),
    ):
        assert old in sparse
        with pytest.raises(Unacceptable, match=r"parent|other files"):
            check(io.BytesIO(sparse.replace(old, new)), ImageFormat.VMDK)
    flat = create_disk(tmp_path / "flat", ImageFormat.VMDK, "-o", "subformat=monolithicFlat")
    with flat.open("rb") as file, pytest.raises(Unacceptable, match="VMDK of several files"):
        detect(file)


def test_one_file_of_a_vmdk_of_several_is_named_as_such(tmp_path: Path) -> None:
    create_disk(tmp_path / "disk.vmdk", ImageFormat.VMDK, "-o", "subformat=twoGbMaxExtentSparse")
    part = bytearray((tmp_path / "disk-s001.vmdk").read_bytes())
    with pytest.raises(Unacceptable, match="one extent of a VMDK"):
        check(io.BytesIO(bytes(part)), ImageFormat.VMDK)
    struct.pack_into("<QQ", part, 28, 1, 20)  # as VMware writes it: a place for a description, and none there
    with pytest.raises(Unacceptable, match="one extent of a VMDK"):
        check(io.BytesIO(bytes(part)), ImageFormat.VMDK)


def test_blanks_after_a_value_in_a_vmdk_are_ignored(tmp_path: Path) -> None:
    sparse = create_disk(tmp_path / "disk", ImageFormat.VMDK).read_bytes()
    for blank in (b" ", b"\t", b" \r"):
        written = sparse.replace(b"parentCID=ffffffff\n", b"parentCID=ffffffff" + blank + b"\n", 1)
        assert check(io.BytesIO(written[: len(sparse)]), ImageFormat.VMDK) == SIZE


def test_a_vhd_with_a_parent_or_a_damaged_footer_is_refused(tmp_path: Path) -> None:
    data = bytearray(create_disk(tmp_path / "disk", ImageFormat.VHD).read_bytes())
    data[-512 + 70] ^= 1
    with pytest.raises(Unacceptable, match="checksum"):
        check(io.BytesIO(bytes(data)), ImageFormat.VHD)
    data[-512 + 70] ^= 1
    data[-512 + 63] += 1  # type 4
    struct.pack_into(">I", data, len(data) - 448, struct.unpack_from(">I", data, len(data) - 448)[0] - 1)
    with pytest.raises(Unacceptable, match="differencing disk"):
        check(io.BytesIO(bytes(data)), ImageFormat.VHD)


def test_a_vmdk_without_a_descriptor_is_refused(tmp_path: Path) -> None:
    data = bytearray(create_disk(tmp_path / "disk", ImageFormat.VMDK).read_bytes())
    struct.pack_into("<QQ", data, 28, 1 << 63, 20)
    with pytest.raises(Unacceptable, match="descriptor is missing"):
        check(io.BytesIO(bytes(data)), ImageFormat.VMDK)


def test_a_differencing_vdi_is_refused(tmp_path: Path) -> None:
    data = bytearray(create_disk(tmp_path / "disk", ImageFormat.VDI).read_bytes())
    struct.pack_into("<I", data, 0x4C, 4)
    with pytest.raises(Unacceptable, match="differencing disk"):
        check(io.BytesIO(bytes(data)), ImageFormat.VDI)


@given(
    st.sampled_from([f for f in ImageFormat if f is not ImageFormat.RAW]), st.integers(0, 600), st.binary(max_size=64)
)
def test_a_broken_header_is_read_or_refused_and_never_crashes(format: ImageFormat, at: int, noise: bytes) -> None:
    magic = {ImageFormat.QCOW2: b"QFI\xfb", ImageFormat.VMDK: b"KDMV", ImageFormat.VHDX: b"vhdxfile"}.get(format, b"")
    head = bytearray(magic + os.urandom(600))
    head[at : at + len(noise)] = noise
    try:
        size = check(io.BytesIO(bytes(head)), format)
        assert size is None or size >= 0
    except Unacceptable as error:
        assert str(error)


def test_only_what_has_the_file_system_of_a_cd_is_an_iso(tmp_path: Path) -> None:
    cd, other = tmp_path / "cd.iso", tmp_path / "disk.iso"
    cd.write_bytes(iso.bootable("hello"))
    other.write_bytes(bytes(SIZE))
    with cd.open("rb") as file:
        assert check(file, ImageFormat.ISO) == cd.stat().st_size
    with other.open("rb") as file, pytest.raises(Unacceptable, match="it is not a CD image"):
        check(file, ImageFormat.ISO)


def signed(begins: bytes, table: bytes = b"", fill: bytes = b"\0") -> bytes:
    """Return a file whose first sector has the sign of a boot sector."""
    return begins.ljust(446, fill) + table.ljust(64, fill) + b"\x55\xaa" + b"x" * 8192


PARTITION = struct.pack("<B3sB3sII", 0x80, b"\x20\x21\0", 0x83, b"\xdd\x1e\x3f", 2048, 16384)


@pytest.mark.parametrize(
    "data",
    [
        signed(b"\xef\xbb\xbf<html><head><title>404", fill=b" "),
        signed(b"<!-- moved --><html>", fill=b"-"),
        signed(b"Not found: look elsewhere. ", fill=b"."),
        signed(b"PK\x03\x04\x14\0\0\0\x08\0", fill=b"\x9c"),
        signed(b"MZ\x90\0\x03", fill=b"\x41"),
        signed(b"MZ\xea\x07\0\xc0\x07", b"HdrS"),
        signed(b"%PDF-1.7\n"),
        signed(b"\x7fELF\x02\x01\x01"),
        signed(b"\x1f\x8b\x08", fill=b"\x5a"),
    ],
    ids=["page with a mark", "page with a comment", "text", "ZIP", "program", "Linux kernel", "PDF", "ELF", "gzip"],
)  # fmt: skip
def test_a_file_that_has_the_sign_of_a_boot_sector_by_chance_is_no_disk(data: bytes) -> None:
    with pytest.raises(Unacceptable, match=r"does not look like a disk|web page"):
        detect(io.BytesIO(data))


@pytest.mark.parametrize(
    "data",
    [
        signed(b"", PARTITION),
        signed(b"MZ", PARTITION),
        signed(b"whatever", bytes(16) + PARTITION),
        signed(b"\xeb\x63\x90\x10\x8e\xd0"),
        signed(b"\xfa\xb8\0\x10\x8e\xd0"),
        signed(b"\xeb\x3c\x90mkfs.fat\0\x02\x04\x01\0\x02", b"\xcd\x10" * 32),
        signed(b"\x33\xc0\x8e\xd0", PARTITION * 4),
        signed(b""),
    ],
    ids=["partitions", "and a program", "second partition", "GRUB", "boot code", "FAT", "four partitions", "new table"],
)  # fmt: skip
def test_a_boot_sector_is_a_raw_disks(data: bytes) -> None:
    assert detect(io.BytesIO(data)) is ImageFormat.RAW


@given(st.binary(min_size=510, max_size=510), st.integers(0, 255))
def test_hardly_any_noise_has_a_partition_table(noise: bytes, first: int) -> None:
    sector = b"\x01" + noise[1:446] + bytes([first | 1]) + noise[447:] + b"\x55\xaa"
    if (first | 1) not in (0, 0x80):
        assert not boot_sector._is_table(sector[446:510])
