"""What a file that claims to be a disk really is, read by ourselves before any tool opens it.

Its header may name other files: a lower layer, the file with the data, a parent. None is ever followed.
Sources: QEMU's docs/interop/qcow2.txt, VMware's Virtual Disk Format 1.1, VirtualBox' VDICore.h, Microsoft's Virtual
Hard Disk Image Format Specification and [MS-VHDX].
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from novacron.disk import boot_sector
from novacron.disk.blocks import data_ranges
from novacron.disk.errors import Unacceptable
from novacron.disk.unpack import DMG_TRAILER
from novacron.model.image import ImageFormat

SECTOR = 512
HEAD_BYTES = 1 << 20
QCOW2_MAGIC, QCOW2_VERSIONS, QCOW2_EXTERNAL_DATA = b"QFI\xfb", (2, 3), 1 << 2
QCOW2_KNOWN = 0b11001
"""Incompatible features that change nothing for a reader: dirty, compression type, extended L2 entries."""
VMDK_MAGIC, VMDK_TEXT = b"KDMV", b"# Disk DescriptorFile"
VMDK_DESCRIPTOR_BYTES_MAX = 1 << 20
VMDK_TYPES = ("monolithicSparse", "streamOptimized")
VMDK_NO_PARENT = "ffffffff"
VMDK_PART = (
    "it is one extent of a VMDK without its descriptor: convert the small .vmdk file that names this one, for example"
    " to qcow2"
)
VDI_MAGIC_AT, VDI_MAGIC = 0x40, 0xBEDA107F
VDI_DYNAMIC, VDI_FIXED = 1, 2
VHDX_MAGIC = b"vhdxfile"
VHD_MAGIC, VHD_FIXED, VHD_DYNAMIC, VHD_DIFFERENCING = b"conectix", 2, 3, 4
QED_MAGIC, PARALLELS_MAGICS = b"QED\0", (b"WithoutFreeSpace", b"WithouFreSpacExt")
OTHERS = {
    b"7z\xbc\xaf": "a 7-Zip archive", b"Rar!": "a RAR archive", VMDK_TEXT: "a VMDK of several files",
    b"COWD": "a VMDK of VMware ESX 2", QED_MAGIC: "QED", PARALLELS_MAGICS[0]: "a Parallels disk",
    PARALLELS_MAGICS[1]: "a Parallels disk", b"Bochs Virtual HD Image": "a Bochs disk",
    b"#!/bin/sh\n#V2.0 Format": "a cloop file", b"EVF\x09": "an EWF forensic image", b"MSWIM": "a WIM archive",
    b"QFI\xfb\0\0\0\x01": "qcow of version 1", b"\xbe\xba\xfe\xca\0\0\0\0": "a VMDK of VMware's SESparse type",
    b"VMA\0": "a backup of Proxmox VE (VMA)", b"sprs": "an Apple sparse image", b"shdw": "an Apple sparse image (ASIF)",
}  # fmt: skip
"""What comes in place of a disk, by mistake or not, and how it begins."""
TAR_MAGIC_AT, TAR_MAGIC = 257, b"ustar"
CD_AT, CD_MAGICS = 32769, (b"CD001", b"BEA01")
PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
DISK_SIGNS = (
    (512, b"EFI PART"), (4096, b"EFI PART"), (508, b"\xda\xbe"), (512, b"PM\0\0"),
    (512, b"\x57\x45\x56\x82"), (0, b"LABELONE"), (512, b"LABELONE"), (0, b"LUKS\xba\xbe"),
    (4096, b"\xfc\x4e\x2b\xa9"), (0, b"\xfc\x4e\x2b\xa9"), (0x438, b"\x53\xef"), (0, b"XFSB"), (0x10040, b"_BHRfS_M"),
    (0x400, b"\x10\x20\xf5\xf2"), (4086, b"SWAPSPACE2"), (32769, b"CD001"), (32769, b"BEA01"), (0, b"hsqs"),
    (0x400, b"\xe2\xe1\xf5\xe0"), (0, b"\x45\x3d\xcd\x28"), (0, b"-rom1fs-"), (32, b"NXSB"), (1024, b"H+"),
    (1024, b"HX"), (8192 + 0x55C, b"\x54\x19\x01\0"),
    (65536 + 0x55C, b"\x19\x01\x54\x19"), (0x10034, b"ReIsEr"), (32768, b"JFS1"),
    (3, b"NTFS    "), (3, b"EXFAT   "), (3, b"-FVE-FS-"), (0x400, b"OCFSV2"), (0x800, b"OCFSV2"),
    (0x1000, b"OCFSV2"), (0x2000, b"OCFSV2"), (0x400, b"\2\0\0\0\0\0\x34\x34"), (0x10000, b"\1\x16\x19\x70\0\0\0\1"),
    (0x10000, b"ReIsEr4"), (0x1018, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")),
    (0x1018, bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef")), (8182, b"SWAPSPACE2"), (16374, b"SWAPSPACE2"),
    (32758, b"SWAPSPACE2"), (65526, b"SWAPSPACE2"), (4086, b"SWAP-SPACE"), (0, b"\x28\xcd\x3d\x45"), (0, b"sqsh"),
    (0, b"\xce\xfa\xad\x1b"), (0, b"\x0b\xe5\xa9\x41"), (0, b"dmvdo001"), (0, b"bluestore block device"),
    (0x4014, b"\0\0\0\x07version\0"), (0x400, b"\xf5\xfc\1\xa5"), (0x2000, b"\xa5\1\xfc\xf5"),
    (544, b"1SFB"), (544, b"BFS1"), (32, b"1SFB"),
)  # fmt: skip
"""How a raw disk is recognised, and where, beside boot sectors: partition tables (GPT, Sun, Apple, BSD, SGI), volumes
(LVM, LUKS, MD RAID, bcache, VDO, BlueStore), file systems (ext, XFS, Btrfs, F2FS, swap, ISO 9660, UDF, squashfs, EROFS,
cramfs, romfs, APFS, HFS+, UFS, ReiserFS, Reiser4, JFS, NTFS, exFAT, BitLocker, ZFS, OCFS2, NILFS2, GFS2, bcachefs, BFS,
VxFS, BeFS)."""


def detect(file: BinaryIO) -> ImageFormat:
    """Return the format that a file appears to have. Raises Unacceptable for anything but a disk, or
    nothing that is known: a raw disk has a partition table, a file system, or nothing but zeros."""
    head = _read(file, 0, 1024)
    if (format := _by_head(head)) is not None:
        return format
    size = file.seek(0, 2)
    tail = _read(file, max(0, size - SECTOR), SECTOR)
    if tail.startswith(VHD_MAGIC):
        return ImageFormat.VHD
    if tail.startswith(DMG_TRAILER):
        raise Unacceptable("it is an Apple disk image (DMG), not a supported disk format: convert it first")
    if head.removeprefix(BYTE_ORDER_MARK).lstrip().lower().startswith(PAGES):
        raise Unacceptable("it is a web page or XML, not a disk: look at it, and check where it came from")
    if head[TAR_MAGIC_AT:].startswith(TAR_MAGIC):
        raise Unacceptable("it is a tar archive, not a disk: unpack it first; an OVA comes in with: novacron vm import")
    if size < SECTOR or not (_is_known_disk(file) or _is_blank(file, size)):
        raise Unacceptable(
            "it does not look like a disk: it has no known format, partition table or file system; if it is a raw disk"
            ", import it with --format raw"
        )
    return ImageFormat.RAW


def _by_head(head: bytes) -> ImageFormat | None:
    """Return the format that a file's first bytes tell, None if they tell none. Raises Unacceptable."""
    for magic, name in OTHERS.items():
        if head.startswith(magic):
            raise Unacceptable(f"it is {name}, not a supported disk format: convert it first, for example to qcow2")
    for magic, format in (
        (QCOW2_MAGIC, ImageFormat.QCOW2),
        (VMDK_MAGIC, ImageFormat.VMDK),
        (VHDX_MAGIC, ImageFormat.VHDX),
        (VHD_MAGIC, ImageFormat.VHD),
    ):
        if head.startswith(magic):
            return format
    if len(head) >= SECTOR and struct.unpack_from("<I", head, VDI_MAGIC_AT)[0] == VDI_MAGIC:
        return ImageFormat.VDI
    return None


def _is_known_disk(file: BinaryIO) -> bool:
    return any(_read(file, at, len(magic)) == magic for at, magic in DISK_SIGNS) or boot_sector.is_one(
        _read(file, 0, SECTOR)
    )


def _is_blank(file: BinaryIO, size: int) -> bool:
    """Say whether a file is nothing but zeros, as a new disk is."""
    return size % SECTOR == 0 and not any(any(piece) for piece in _pieces(file, size))


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield what of a file is no hole, in pieces."""
    try:
        descriptor = file.fileno()
    except (OSError, ValueError):  # it lies in memory
        yield from (_read(file, at, HEAD_BYTES) for at in range(0, size, HEAD_BYTES))
        return
    for start, end in data_ranges(descriptor, size):
        for at in range(start, end, HEAD_BYTES):
            yield os.pread(descriptor, min(HEAD_BYTES, end - at), at)


def check(file: BinaryIO, format: ImageFormat) -> int | None:
    """Return how many bytes the disk in a file has, as far as its header says; None for what only a tool can tell.

    Raises Unacceptable when it is not in this format, is damaged, or refers to another file.
    """
    match format:
        case ImageFormat.ISO:
            if not any(_read(file, CD_AT, len(magic)) == magic for magic in CD_MAGICS):
                raise Unacceptable("it is not a CD image: it has neither an ISO 9660 nor a UDF file system")
            return file.seek(0, 2)
        case ImageFormat.RAW | ImageFormat.BOOT_FILE:
            return file.seek(0, 2)
        case ImageFormat.QCOW2:
            return _check_qcow2(file)
        case ImageFormat.VMDK:
            return _check_vmdk(file)
        case ImageFormat.VDI:
            return _check_vdi(file)
        case ImageFormat.VHD:
            return _check_vhd(file)
        case ImageFormat.VHDX:
            if not _read(file, 0, 8).startswith(VHDX_MAGIC):
                raise Unacceptable("it does not start like a VHDX")
            return None  # QEMU takes none with a parent, and opens no other file
    raise AssertionError(format)


def _read(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _check_qcow2(file: BinaryIO) -> int:
    head = _read(file, 0, 104)
    if len(head) < 72 or not head.startswith(QCOW2_MAGIC):
        raise Unacceptable("it does not start like a qcow2")
    version, backing_at, _, cluster_bits, size, encryption = struct.unpack_from(">IQIIQI", head, 4)
    if version not in QCOW2_VERSIONS:
        raise Unacceptable(f"it is qcow version {version}; 2 and 3 are supported")
    if backing_at:
        raise Unacceptable("it has a backing file; convert it to a disk without one")
    if encryption:
        raise Unacceptable("it is encrypted")
    if not 9 <= cluster_bits <= 21:
        raise Unacceptable(f"its header is damaged: clusters of 2^{cluster_bits} bytes")
    if version >= 3 and len(head) >= 104:
        features = struct.unpack_from(">Q", head, 72)[0]
        if features & QCOW2_EXTERNAL_DATA:
            raise Unacceptable("its data is in an external data file; convert it to a disk without one")
        if features & ~QCOW2_KNOWN:
            raise Unacceptable(f"it is damaged, or uses unsupported features ({features:#x})")
    return int(size)


def _check_vmdk(file: BinaryIO) -> int:
    head = _read(file, 0, SECTOR)
    if len(head) < SECTOR or not head.startswith(VMDK_MAGIC):
        raise Unacceptable("it does not start like a VMDK of one file")
    _, _, capacity, _, at, sectors = struct.unpack_from("<IIQQQQ", head, 4)
    if not at and not sectors:
        raise Unacceptable(VMDK_PART)
    if not 0 < at * SECTOR < HEAD_BYTES or not 0 < sectors * SECTOR <= VMDK_DESCRIPTOR_BYTES_MAX:
        raise Unacceptable("its descriptor is missing or too large")
    text = _read(file, at * SECTOR, sectors * SECTOR).split(b"\0")[0].decode("utf-8", "replace")
    lines = re.findall(r'^\s*(\w+)\s*=\s*"?([^"\r\n]*)"?\s*$', text, re.M)
    values = {name.lower(): value.strip() for name, value in lines}
    if "createtype" not in values:
        raise Unacceptable(VMDK_PART)
    if values.get("parentcid", VMDK_NO_PARENT).lower() != VMDK_NO_PARENT or values.get("parentfilenamehint"):
        raise Unacceptable("it has a parent disk; convert it to a full disk")
    if values.get("createtype") not in VMDK_TYPES:
        raise Unacceptable(
            f"its data is in other files (type {values['createtype'][:40]!r}): convert it where they are, for example"
            " to qcow2"
        )
    return int(capacity) * SECTOR


def _check_vdi(file: BinaryIO) -> int:
    head = _read(file, 0, SECTOR)
    if len(head) < SECTOR or struct.unpack_from("<I", head, VDI_MAGIC_AT)[0] != VDI_MAGIC:
        raise Unacceptable("it does not start like a VDI")
    kind = struct.unpack_from("<I", head, 0x4C)[0]
    if kind not in (VDI_DYNAMIC, VDI_FIXED):
        raise Unacceptable("it is a differencing disk; convert it to a full disk")
    return int(struct.unpack_from("<Q", head, 0x170)[0])


def _check_vhd(file: BinaryIO) -> int:
    size = file.seek(0, 2)
    footer = _read(file, max(0, size - SECTOR), SECTOR)
    if len(footer) < SECTOR or not footer.startswith(VHD_MAGIC):
        raise Unacceptable("it is cut off, or not a VHD: its footer is missing")
    checksum = struct.unpack_from(">I", footer, 64)[0]
    if checksum != ~(sum(footer) - sum(footer[64:68])) & 0xFFFFFFFF:
        raise Unacceptable("its footer is damaged: the checksum is wrong")
    kind = struct.unpack_from(">I", footer, 60)[0]
    if kind == VHD_DIFFERENCING:
        raise Unacceptable("it is a differencing disk (with a parent); convert it to a full disk")
    if kind not in (VHD_FIXED, VHD_DYNAMIC):
        raise Unacceptable(f"it is a VHD of type {kind}; 2 (fixed) and 3 (dynamic) are supported")
    return int(struct.unpack_from(">Q", footer, 48)[0])
