"""What is in a VM's archive: NovaCron's own, or an OVF package, which other platforms write (DMTF DSP0243).

NovaCron's is a tar archive of ``vm.json`` and ``disk.qcow2``. A package is a descriptor in XML and its disks, in a tar
archive (OVA) or as files beside each other. What is in them is hostile: nothing is unpacked, names in it are compared
and never opened, and the disks go to a node, which distrusts them as it does every image.
"""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple, cast

from novacron.client import ovf, ovf_manifest, ovf_package
from novacron.client.errors import ArchiveError
from novacron.client.ovf_manifest import PackageManifest
from novacron.client.ovf_package import DiskPart
from novacron.client.protocol import Object

FORMAT = 1
ABOUT, DISK = "vm.json", "disk.qcow2"
ABOUT_BYTES_MAX = 1 << 20
DESCRIPTOR_BYTES_MAX = 8 << 20
"""Of an OVF descriptor or a manifest; descriptors with many properties, in many languages, have megabytes."""
MEMBERS_MAX = 1024
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
"""How compressed archives begin: such an OVA, or a Vagrant box, is unpacked first."""
CUT_OFF = "unexpected end of data"
"""What tarfile says when a member is not all there."""
READ_BYTES_MAX = DESCRIPTOR_BYTES_MAX + tarfile.BLOCKSIZE
CARRIED = ("vcpus", "memory_mib", "restart", "start_order", "display", "firmware", "tpm", "os", "disk_bus",
           "nic_model", "smbios_manufacturer", "smbios_serial", "smbios_asset_tag", "serial_ports", "usb",
           "numa_nodes", "cpu_policy", "hugepages", "disk_boot_order", "network_boot_order", "cdroms")  # fmt: skip
"""Fields of a VM that an archive keeps: networks, nodes and the like mean nothing on another platform."""
DESCRIBED = ("display_name", "description", "tags")
"""What people wrote about the VM, which an archive keeps."""


def carried(spec: Mapping[str, object]) -> Object:
    """Return what an archive keeps of a VM's spec: CD-ROM drives are empty, because ISOs are not in it."""
    fields = {field: spec[field] for field in CARRIED if field in spec}
    if "cdroms" in fields:
        drives = cast("Iterable[Mapping[str, object]]", fields["cdroms"])
        fields["cdroms"] = [{**drive, "iso": None} for drive in drives]
    return fields


class ArchivedDisk(NamedTuple):
    """A disk in an archive: where its bytes are, and in which format; None where the node finds out.

    ``size_bytes``: of the file, or of the disk itself when that is blank and has no ``pieces``.
    """

    pieces: tuple[DiskPart, ...]
    size_bytes: int
    format: str | None = None
    sha256: str | None = None
    """Of the file, which the node checks; checksums of other kinds stand with the pieces."""
    capacity_bytes: int = 0
    """What the disk has at least for the guest, by its descriptor; 0: what its file says."""


class ArchivedVm(NamedTuple):
    """A VM as an archive describes it: fields of ``POST /api/v1/vms``, its first disk, and further ones. ``dropped``:
    what it had elsewhere and will not have here, each in a sentence."""

    name: str
    fields: Object
    disk: ArchivedDisk
    further_disks: tuple[ArchivedDisk, ...] = ()
    macs: tuple[str, ...] = ()
    """MAC addresses that its interfaces had, in their order."""
    own: bool = False
    """NovaCron has written it."""
    dropped: tuple[str, ...] = ()


def read(file: Path) -> ArchivedVm:
    """Return the VM in an archive, an OVA, or a descriptor with its disks beside it. Raises ArchiveError, OSError."""
    if file.suffix.lower() == ".ovf":
        return _loose_package(file)
    try:
        with file.open("rb") as raw, tarfile.open(fileobj=cast("IO[bytes]", _SmallReads(raw)), mode="r:") as archive:
            members = {ovf_manifest.plain(member.name): member for member in _regular_members(file, archive)}

            def text(name: str) -> bytes:
                most = ABOUT_BYTES_MAX if name == ABOUT else DESCRIPTOR_BYTES_MAX
                if members[name].size > most:
                    raise ArchiveError(f"{name} in {file} has more than {most} bytes")
                content = archive.extractfile(members[name])
                assert content is not None, "it is a regular file"
                return content.read()

            if ABOUT in members and DISK in members:
                return _own_archive(file, text(ABOUT), members[DISK])
            description = next((name for name in members if name.lower().endswith(".ovf")), None)
            if description is None:
                raise ArchiveError(f"{file} has neither {ABOUT} and {DISK} nor an OVF description")
            return _archived_package(file, description, members, text)
    except tarfile.TarError as error:
        raise ArchiveError(_why_unreadable(file, error)) from error


def _why_unreadable(file: Path, error: tarfile.TarError) -> str:
    """Return what a file is that can't be read as a tar archive, in a sentence."""
    with file.open("rb") as opened:
        head = opened.read(8)
    packed = next((kind for magic, kind in PACKED.items() if head.startswith(magic)), None)
    if packed is not None:
        return f"{file} is compressed ({packed}): unpack it first, and import the OVA or OVF in it"
    return f"{file} is cut off: fetch it again" if str(error) == CUT_OFF else f"{file} is not a tar archive: {error}"


def _archived_package(
    file: Path, description: str, members: Mapping[str, tarfile.TarInfo], text: Callable[[str], bytes]
) -> ArchivedVm:
    """Return the VM of an OVA. ``description``: the name of its descriptor; ``text`` reads a member."""
    folder, _, own_name = description.rpartition("/")
    beside = dict(_beside(folder, members))
    manifest_name = ovf_manifest.name_in_archive(own_name, beside)
    manifest = None
    if manifest_name is not None:
        manifest = ovf_manifest.parse(text(f"{folder}/{manifest_name}" if folder else manifest_name), folder)
        manifest.check_descriptor(own_name, text(description))
    files = {
        name: DiskPart(file, member.offset_data, member.size, None if manifest is None else manifest.of(name))
        for name, member in beside.items()
    }
    return _packaged_vm(file, ovf.parse(text(description)), files, manifest)


def _beside(folder: str, members: Mapping[str, tarfile.TarInfo]) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield the members in a descriptor's folder and below, by the names that the descriptor gives them."""
    inside = f"{folder}/" if folder else ""
    for name, member in members.items():
        if name.startswith(inside):
            yield name.removeprefix(inside), member


def _regular_members(file: Path, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for count in itertools.count(1):
        member = archive.next()
        if member is None:
            return
        if count > MEMBERS_MAX:  # of any kind: a negative size lets older Pythons loop for ever
            raise ArchiveError(f"{file} has more than {MEMBERS_MAX} members")
        if member.isreg() and not member.issparse():
            yield member


class _SmallReads:
    """A file for tarfile, which reads extended headers whole, however large they say they are. Raises ArchiveError."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.name, self.seek, self.tell = file.name, file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= READ_BYTES_MAX:
            raise ArchiveError(f"a header in {self.name} has more than {READ_BYTES_MAX} bytes")
        return self._file.read(count)


def _own_archive(file: Path, text: bytes, disk: tarfile.TarInfo) -> ArchivedVm:
    try:
        about = json.loads(text)
        if about["format"] != FORMAT:
            raise ArchiveError(f"{file} has format {about['format']}, which this version does not know: update it")
        described = about.get("described", {})  # older archives of format 1 have none
        fields = carried(about["spec"]) | {field: described[field] for field in DESCRIBED if field in described}
        if about.get("firmware_state"):  # older archives of format 1 have none
            fields["firmware_state"] = about["firmware_state"]
        piece = DiskPart(file, disk.offset_data, disk.size)
        archived = ArchivedDisk((piece,), disk.size, "qcow2", str(about["sha256"]))
        macs = tuple(str(address) for address in about.get("macs", ()))  # older archives of format 1 have none
        return ArchivedVm(str(about["name"]), fields, archived, macs=macs, own=True)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArchiveError(f"{ABOUT} in {file} is damaged: {error!r}") from error


def _loose_package(descriptor: Path) -> ArchivedVm:
    """Return the VM of a descriptor whose disks lie beside it."""
    text = _small(descriptor)
    manifest_name = ovf_manifest.name_beside(descriptor.name, (path.name for path in descriptor.parent.iterdir()))
    manifest = None
    if manifest_name is not None:
        manifest = ovf_manifest.parse(_small(descriptor.with_name(manifest_name)))
        manifest.check_descriptor(descriptor.name, text)
    machine = ovf.parse(text)
    files = ovf_package.files_beside(descriptor, machine.disks, manifest)
    return _packaged_vm(descriptor, machine, files, manifest)


def _small(file: Path) -> bytes:
    with file.open("rb") as opened:
        content = opened.read(DESCRIPTOR_BYTES_MAX + 1)
    if len(content) > DESCRIPTOR_BYTES_MAX:
        raise ArchiveError(f"{file} has more than {DESCRIPTOR_BYTES_MAX} bytes")
    return content


def _packaged_vm(
    package: Path, machine: ovf.OvfMachine, files: Mapping[str, DiskPart], manifest: PackageManifest | None
) -> ArchivedVm:
    disks = []
    for disk in machine.disks:
        pieces = ovf_package.disk_pieces(disk, files, package, manifest)
        size = sum(piece.size_bytes for piece in pieces) if pieces else disk.size_bytes
        disks.append(ArchivedDisk(pieces, size, None, _sha256_of(pieces), disk.size_bytes))
    name, further = ovf.plain_name(machine.name), tuple(disks[1:])
    return ArchivedVm(name, machine.fields, disks[0], further, machine.macs, dropped=machine.dropped)


def _sha256_of(pieces: tuple[DiskPart, ...]) -> str | None:
    """Return the SHA-256 of a file in one piece, if the manifest says it."""
    checksum = pieces[0].checksum if len(pieces) == 1 else None
    return checksum.hexadecimal if checksum is not None and checksum.algorithm == "sha256" else None
