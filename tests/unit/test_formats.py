"""What a file that claims to be a disk may say in its header, and what it may not."""

from __future__ import annotations

import io
import os
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.disk.formats import OTHERS, Unacceptable, check, detect
from novacron.model.image import Format

SIZE = 8 << 20


def made(path: Path, format: Format, *options: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", format, *options, str(path), str(SIZE)], check=True)
    return path


@pytest.mark.parametrize("format", list(Format))
def test_each_format_is_told_by_how_it_begins(tmp_path: Path, format: Format) -> None:
    with made(tmp_path / "disk", format).open("rb") as file:
        assert detect(file) is format
        assert check(file, format) in ((SIZE,) if format is not Format.VHDX else (None,))


@pytest.mark.parametrize("magic", list(OTHERS))
def test_what_is_no_disk_is_named(magic: bytes) -> None:
    with pytest.raises(Unacceptable, match=OTHERS[magic]):
        detect(io.BytesIO(magic + bytes(600)))


def test_a_qcow2_over_another_file_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "disk", Format.QCOW2, "-u", "-F", "raw", "-b", "/etc/shadow")
    with path.open("rb") as file, pytest.raises(Unacceptable, match="lies over another disk"):
        check(file, Format.QCOW2)


def test_a_qcow2_with_its_data_elsewhere_is_refused(tmp_path: Path) -> None:
    option = f"data_file={tmp_path / 'data'},data_file_raw=on"
    path = made(tmp_path / "disk", Format.QCOW2, "-o", option)
    with path.open("rb") as file, pytest.raises(Unacceptable, match="external data file"):
        check(file, Format.QCOW2)


def test_a_vmdk_with_a_parent_or_other_files_is_refused(tmp_path: Path) -> None:
    sparse = made(tmp_path / "disk", Format.VMDK).read_bytes()
    for old, new in (
        (b"parentCID=ffffffff", b"parentCID=12345678"),
        (b'createType="monolithicSparse"', b'createType="monolithicFlat"  '),
    ):
        assert old in sparse
        with pytest.raises(Unacceptable, match=r"parent|other files"):
            check(io.BytesIO(sparse.replace(old, new)), Format.VMDK)
    flat = made(tmp_path / "flat", Format.VMDK, "-o", "subformat=monolithicFlat")
    with flat.open("rb") as file, pytest.raises(Unacceptable, match="VMDK of several files"):
        detect(file)


def test_a_vmdk_whose_descriptor_is_nowhere_is_refused(tmp_path: Path) -> None:
    data = bytearray(made(tmp_path / "disk", Format.VMDK).read_bytes())
    struct.pack_into("<QQ", data, 28, 1 << 63, 20)
    with pytest.raises(Unacceptable, match="descriptor is missing"):
        check(io.BytesIO(bytes(data)), Format.VMDK)


def test_a_vdi_that_is_a_difference_is_refused(tmp_path: Path) -> None:
    data = bytearray(made(tmp_path / "disk", Format.VDI).read_bytes())
    struct.pack_into("<I", data, 0x4C, 4)
    with pytest.raises(Unacceptable, match="difference"):
        check(io.BytesIO(bytes(data)), Format.VDI)


@given(st.sampled_from([f for f in Format if f is not Format.RAW]), st.integers(0, 600), st.binary(max_size=64))
def test_a_broken_header_is_refused_or_read_never_more(format: Format, at: int, noise: bytes) -> None:
    magic = {Format.QCOW2: b"QFI\xfb", Format.VMDK: b"KDMV", Format.VHDX: b"vhdxfile"}.get(format, b"")
    head = bytearray(magic + os.urandom(600))
    head[at : at + len(noise)] = noise
    try:
        size = check(io.BytesIO(bytes(head)), format)
        assert size is None or size >= 0
    except Unacceptable as error:
        assert str(error)
