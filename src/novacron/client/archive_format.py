"""What is in a VM's archive: NovaCron's own, or an OVA, which other platforms write (DMTF DSP0243).

Both are tar archives: here one of ``vm.json`` and ``disk.qcow2``; an OVA of a description in XML and its disks. What is
in them is hostile: nothing is unpacked, names in it are compared and never opened, and the disks go to a node, which
distrusts them as it does every image.
"""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, cast

import defusedxml
from defusedxml import ElementTree

from novacron.client.errors import ArchiveError
from novacron.client.protocol import Object

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

FORMAT = 1
ABOUT, DISK = "vm.json", "disk.qcow2"
ABOUT_BYTES_MAX = 1 << 20
MEMBERS_MAX = 64
READ_BYTES_MAX = ABOUT_BYTES_MAX + tarfile.BLOCKSIZE
DISKS_MAX = 8
CARRIED = ("vcpus", "memory_mib", "restart", "start_order", "display", "firmware", "tpm")
"""Fields of a VM that an archive keeps: networks, nodes and the like mean nothing on another platform."""
OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"
VMW = "{http://www.vmware.com/schema/ovf}"
CPU, MEMORY, DISK_DRIVE = "3", "4", "17"


class ArchivedDisk(NamedTuple):
    """A disk in an archive: where its bytes are, and in which format."""

    file: Path
    offset: int
    size_bytes: int
    format: str
    sha256: str | None


class ArchivedVm(NamedTuple):
    """A VM as an archive describes it: fields of ``POST /api/v1/vms``, its first disk, and further ones."""

    name: str
    fields: Object
    disk: ArchivedDisk
    further_disks: tuple[ArchivedDisk, ...] = ()


def read(file: Path) -> ArchivedVm:
    """Return the VM in an archive or an OVA. Raises ArchiveError, OSError."""
    try:
        with file.open("rb") as raw, tarfile.open(fileobj=cast("IO[bytes]", _SmallReads(raw)), mode="r:") as archive:
            members = {member.name: member for member in _regular_members(file, archive)}

            def text(name: str) -> bytes:
                if members[name].size > ABOUT_BYTES_MAX:
                    raise ArchiveError(f"{name} in {file} has more than {ABOUT_BYTES_MAX} bytes")
                content = archive.extractfile(members[name])
                assert content is not None, "it is a regular file"
                return content.read()

            if ABOUT in members and DISK in members:
                return _own_archive(file, text(ABOUT), members[DISK])
            description = next((name for name in members if name.lower().endswith(".ovf")), None)
            if description is None:
                raise ArchiveError(f"{file} has neither {ABOUT} and {DISK} nor an OVF description")
            manifest = next((text(name) for name in members if name.lower().endswith(".mf")), b"")
            return _ova(file, text(description), manifest, members)
    except tarfile.TarError as error:
        raise ArchiveError(f"{file} is no tar archive: {error}") from error


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
        fields = {field: about["spec"][field] for field in CARRIED if field in about["spec"]}
        if about.get("firmware_state"):  # older archives of format 1 have none
            fields["firmware_state"] = about["firmware_state"]
        archived = ArchivedDisk(file, disk.offset_data, disk.size, "qcow2", str(about["sha256"]))
        return ArchivedVm(str(about["name"]), fields, archived)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArchiveError(f"{ABOUT} in {file} is damaged: {error!r}") from error


def _ova(file: Path, text: bytes, manifest: bytes, members: dict[str, tarfile.TarInfo]) -> ArchivedVm:
    try:
        root = ElementTree.fromstring(text, forbid_dtd=True)
    except defusedxml.DefusedXmlException:
        raise ArchiveError(f"the description in {file} defines entities, which no OVA needs") from None
    except (ElementTree.ParseError, LookupError) as error:  # LookupError: an encoding that Python does not know
        raise ArchiveError(f"the description in {file} is no XML: {error}") from error
    systems = root.findall(f".//{OVF}VirtualSystem")
    if len(systems) != 1:
        raise ArchiveError(f"{file} holds {len(systems)} VMs; an import takes one")
    system = systems[0]
    fields, drives = _hardware(system)
    if not 0 < len(drives) <= DISKS_MAX:
        raise ArchiveError(f"the VM in {file} has {len(drives)} disks; an import takes 1 to {DISKS_MAX}")
    hrefs = {element.get(f"{OVF}id"): element.get(f"{OVF}href", "") for element in root.iter(f"{OVF}File")}
    names = {disk.get(f"{OVF}diskId"): hrefs.get(disk.get(f"{OVF}fileRef"), "") for disk in root.iter(f"{OVF}Disk")}
    disks = [_ova_disk(file, names.get(drive, ""), manifest, members) for drive in drives]
    title = system.findtext(f"{OVF}Name") or system.get(f"{OVF}id") or ""
    name = re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")[:63]
    return ArchivedVm(name, fields, disks[0], tuple(disks[1:]))


def _hardware(system: Element) -> tuple[Object, list[str]]:
    """Return the fields of the VM that an OVF describes, and the ids of its disks."""
    fields: Object = {}
    drives = []
    for item in system.findall(f"{OVF}VirtualHardwareSection/{OVF}Item"):
        kind = item.findtext(f"{RASD}ResourceType", "")
        if kind == CPU:
            fields["vcpus"] = _number(item, "VirtualQuantity")
        elif kind == MEMORY:
            fields["memory_mib"] = (_number(item, "VirtualQuantity") * _bytes_per_unit(item)) >> 20
        elif kind == DISK_DRIVE:
            drives.append(item.findtext(f"{RASD}HostResource", "").rpartition("/")[2])
    for config in system.iter(f"{VMW}Config"):
        if config.get(f"{VMW}key") == "firmware" and config.get(f"{VMW}value") == "efi":
            fields["firmware"] = "uefi"
    return fields, drives


def _ova_disk(file: Path, name: str, manifest: bytes, members: dict[str, tarfile.TarInfo]) -> ArchivedDisk:
    if name not in members:
        raise ArchiveError(f"{file} lacks the disk {name!r} of its VM")
    line = rf"^SHA256\({re.escape(name)}\)\s*=\s*([0-9a-fA-F]{{64}})\s*$"
    digest = re.search(line, manifest.decode("latin-1"), re.MULTILINE)
    sha256 = digest[1].lower() if digest else None
    return ArchivedDisk(file, members[name].offset_data, members[name].size, "vmdk", sha256)


def _number(item: Element, field: str) -> int:
    text = item.findtext(f"{RASD}{field}", "")
    if not re.fullmatch("[0-9]{1,12}", text):
        raise ArchiveError(f"{field} of the VM is {text!r}, not a number")
    return int(text)


def _bytes_per_unit(item: Element) -> int:
    """Return how many bytes a unit of memory has: OVF writes ``byte * 2^20``."""
    power = re.fullmatch(r"\s*byte\s*\*\s*2\s*\^\s*([0-9]{1,2})\s*", item.findtext(f"{RASD}AllocationUnits", ""))
    return 1 << (int(power[1]) if power else 20)
