"""What a file that claims to be a disk really is, read by ourselves before any tool opens it.

Its header may name other files: a lower layer, the file with the data, a parent. None is ever followed.
Sources: QEMU's docs/interop/qcow2.txt, VMware's Virtual Disk Format 1.1, VirtualBox' VDICore.h, Microsoft's [MS-VHDX].
"""

from __future__ import annotations

import re
import struct
from typing import BinaryIO

from novacron.model.image import Format

SECTOR = 512
HEAD_BYTES = 1 << 20
QCOW2_MAGIC, QCOW2_VERSIONS, QCOW2_EXTERNAL_DATA = b"QFI\xfb", (2, 3), 1 << 2
QCOW2_KNOWN = 0b11001
"""Incompatible features that change nothing for a reader: dirty, compression type, extended L2 entries."""
VMDK_MAGIC, VMDK_TEXT = b"KDMV", b"# Disk DescriptorFile"
VMDK_DESCRIPTOR_BYTES_MAX = 1 << 20
VMDK_TYPES = ("monolithicSparse", "streamOptimized")
VMDK_NO_PARENT = "ffffffff"
VDI_MAGIC_AT, VDI_MAGIC = 0x40, 0xBEDA107F
VDI_DYNAMIC, VDI_FIXED = 1, 2
VHDX_MAGIC = b"vhdxfile"
OTHERS = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7-Zip", VMDK_TEXT: "a VMDK of several files", b"conectix": "VHD",
}  # fmt: skip
"""What comes in place of a disk, by mistake or not, and how it begins."""


class Unacceptable(Exception):
    """The file is no disk that can be taken: says why."""


def detect(file: BinaryIO) -> Format:
    """Return the format in which a file seems to be. Raises Unacceptable for what is known to be something else."""
    head = _read(file, 0, SECTOR)
    if head.startswith(QCOW2_MAGIC):
        return Format.QCOW2
    if head.startswith(VMDK_MAGIC):
        return Format.VMDK
    if head.startswith(VHDX_MAGIC):
        return Format.VHDX
    if len(head) == SECTOR and struct.unpack_from("<I", head, VDI_MAGIC_AT)[0] == VDI_MAGIC:
        return Format.VDI
    for magic, name in OTHERS.items():
        if head.startswith(magic):
            raise Unacceptable(f"it is {name}, not a disk: unpack or convert it first")
    return Format.RAW


def check(file: BinaryIO, format: Format) -> int | None:
    """Return how many bytes the disk in a file has, as far as its header says; None for what only a tool can tell.

    Raises Unacceptable when it is not in this format, is damaged, or refers to another file.
    """
    match format:
        case Format.RAW:
            return file.seek(0, 2)
        case Format.QCOW2:
            return _check_qcow2(file)
        case Format.VMDK:
            return _check_vmdk(file)
        case Format.VDI:
            return _check_vdi(file)
        case Format.VHDX:
            if not _read(file, 0, 8).startswith(VHDX_MAGIC):
                raise Unacceptable("it does not begin as a VHDX does")
            return None  # QEMU takes none with a parent, and opens no other file
    raise AssertionError(format)


def _read(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _check_qcow2(file: BinaryIO) -> int:
    head = _read(file, 0, 104)
    if len(head) < 72 or not head.startswith(QCOW2_MAGIC):
        raise Unacceptable("it does not begin as a qcow2 does")
    version, backing_at, _, cluster_bits, size, encryption = struct.unpack_from(">IQIIQI", head, 4)
    if version not in QCOW2_VERSIONS:
        raise Unacceptable(f"it is qcow version {version}; 2 and 3 are taken")
    if backing_at:
        raise Unacceptable("it lies over another disk (a backing file); convert it to one without")
    if encryption:
        raise Unacceptable("it is encrypted")
    if not 9 <= cluster_bits <= 21:
        raise Unacceptable(f"its header is damaged: clusters of 2^{cluster_bits} bytes")
    if version >= 3 and len(head) >= 104:
        features = struct.unpack_from(">Q", head, 72)[0]
        if features & QCOW2_EXTERNAL_DATA:
            raise Unacceptable("its data is in another file (an external data file); convert it to one without")
        if features & ~QCOW2_KNOWN:
            raise Unacceptable(f"it is damaged, or has features that are not known here ({features:#x})")
    return int(size)


def _check_vmdk(file: BinaryIO) -> int:
    head = _read(file, 0, SECTOR)
    if len(head) < SECTOR or not head.startswith(VMDK_MAGIC):
        raise Unacceptable("it does not begin as a VMDK of one file does")
    _, _, capacity, _, at, sectors = struct.unpack_from("<IIQQQQ", head, 4)
    if not 0 < at * SECTOR < HEAD_BYTES or not 0 < sectors * SECTOR <= VMDK_DESCRIPTOR_BYTES_MAX:
        raise Unacceptable("its descriptor is missing or too large")
    text = _read(file, at * SECTOR, sectors * SECTOR).split(b"\0")[0].decode("utf-8", "replace")
    values = {name.lower(): value for name, value in re.findall(r'^\s*(\w+)\s*=\s*"?([^"\r\n]*)"?\s*$', text, re.M)}
    if values.get("parentcid", VMDK_NO_PARENT).lower() != VMDK_NO_PARENT or "parentfilenamehint" in values:
        raise Unacceptable("it lies over another disk (a parent); convert it to one without")
    if values.get("createtype") not in VMDK_TYPES:
        raise Unacceptable(f"its data is in other files (type {values.get('createtype', 'unknown')[:40]!r})")
    return int(capacity) * SECTOR


def _check_vdi(file: BinaryIO) -> int:
    head = _read(file, 0, SECTOR)
    if len(head) < SECTOR or struct.unpack_from("<I", head, VDI_MAGIC_AT)[0] != VDI_MAGIC:
        raise Unacceptable("it does not begin as a VDI does")
    kind = struct.unpack_from("<I", head, 0x4C)[0]
    if kind not in (VDI_DYNAMIC, VDI_FIXED):
        raise Unacceptable("it is a difference to another disk; convert it to a whole one")
    return int(struct.unpack_from("<Q", head, 0x170)[0])
