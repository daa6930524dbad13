"""VMs as files: NovaCron's archive, and OVA, which other platforms write (DMTF DSP0243).

Both are tar archives: here one of ``vm.json`` and ``disk.qcow2``; an OVA of a description in XML and its disks. What is
in them is hostile: nothing is unpacked, names in it are compared and never opened, and the disks go to a node, which
distrusts them as it does every image.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import os
import re
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import defusedxml
from defusedxml import ElementTree

from novacron.client.api import Client
from novacron.client.errors import ApiError, ArchiveError, Unreachable

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

FORMAT = 1
ABOUT, DISK = "vm.json", "disk.qcow2"
ABOUT_BYTES_MAX = 1 << 20
MEMBERS_MAX = 64
READ_BYTES_MAX = ABOUT_BYTES_MAX + tarfile.BLOCKSIZE
DISKS_MAX = 8
NAME_SHARE = 56
"""Of a VM's name, what those of its images and volumes begin with."""
CARRIED = ("vcpus", "memory_mib", "restart", "start_order", "display", "firmware", "tpm")
"""What of a spec an archive has: what it says of networks, nodes and moments is not another platform's business."""
RETRIES, RETRY_S = 5, 1.0
OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"
VMW = "{http://www.vmware.com/schema/ovf}"
CPU, MEMORY, DISK_DRIVE = "3", "4", "17"

T = TypeVar("T")
Object = dict[str, Any]
Told = Callable[[int, int], None]
"""Called with how many bytes are there, and how many there will be."""


class Part(NamedTuple):
    """A disk in an archive: where its bytes are, and how they are written."""

    file: Path
    offset: int
    size_bytes: int
    format: str
    sha256: str | None


class Machine(NamedTuple):
    """A VM as an archive describes it: fields of ``POST /api/v1/vms``, its disk, and what more disks it has."""

    name: str
    fields: Object
    disk: Part
    more: tuple[Part, ...] = ()


def export(client: Client, vm: str, file: Path, timeout_s: float, told: Told = lambda have, all_: None) -> Object:
    """Write a VM as it is now into a new ``file``. What broke off goes on when it is called again.

    Raises ApiError, Unreachable, TimeoutError, FileExistsError, ArchiveError.
    """
    if file.exists():
        raise FileExistsError(f"{file} exists")
    part = file.with_name(f"{file.name}.part")
    begun = _go_on(client, vm, part) or client.act("vms", vm, "export")
    done = client.wait("exports", begun["id"], lambda now: now is None or now["phase"] != "making", timeout_s)
    if done is None or done["phase"] != "ready":
        raise ArchiveError(f"VM {vm} was not exported: {done['error'] if done else 'its export is gone'}")
    head = _head(client, done)
    if not part.exists() or part.stat().st_size < len(head):
        part.write_bytes(head)
    digest = hashlib.sha256()
    with part.open("rb") as there:
        there.seek(len(head))
        while held := there.read(1 << 20):
            digest.update(held)
    have = part.stat().st_size - len(head)
    with part.open("ab") as opened:
        while have < done["size_bytes"]:
            piece = _patiently(functools.partial(client.export_data, done["id"], have))
            if not piece:
                raise ArchiveError("its node has less of the export than it said")
            opened.write(piece)
            digest.update(piece)
            have += len(piece)
            told(have, done["size_bytes"])
        if digest.hexdigest() != done["sha256"]:
            part.unlink()
            raise ArchiveError("what arrived is not what was exported; try again")
        opened.write(bytes(-done["size_bytes"] % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE))
        opened.flush()
        os.fsync(opened.fileno())
    part.rename(file)
    client.delete("exports", done["id"])
    return done


def _go_on(client: Client, vm: str, part: Path) -> Object | None:
    """Return the export of which ``part`` is the beginning, if it is still there; else nothing of that stays."""
    if not part.exists():
        return None
    try:
        with tarfile.open(part, mode="r:") as opened:
            first = opened.next()  # the archive ends somewhere: only its beginning can be read
            if first is None or first.name != ABOUT:
                raise ValueError("it begins with something else")
            about = json.loads(
                _beginning(part, first.offset_data + min(first.size, ABOUT_BYTES_MAX))[first.offset_data :]
            )
        found = client.get("exports", about["export"])
        if found["phase"] == "ready":
            head = _head(client, found)
            if _beginning(part, len(head)) == head:
                return found
    except (tarfile.TarError, ValueError, KeyError):
        pass
    except ApiError as error:
        if error.status != 404:
            raise
    part.unlink()
    return None


def _beginning(file: Path, count: int) -> bytes:
    with file.open("rb") as opened:
        return opened.read(count)


def _head(client: Client, done: Object) -> bytes:
    """Return how an archive begins, the same each time: ``vm.json``, and the header of the disk."""
    remembered = _patiently(lambda: client.export_firmware_state(done["id"]))
    spec = {field: done["spec"][field] for field in CARRIED}
    about = {
        "format": FORMAT, "name": done["vm_name"], "spec": spec, "disk_bytes": done["disk_bytes"],
        "sha256": done["sha256"], "export": done["id"], "exported_at": done["created_at"],
        "firmware_state": {field: state for field, state in remembered.items() if state is not None},
    }  # fmt: skip
    text = json.dumps(about, indent=2).encode() + b"\n"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as made:
        member = tarfile.TarInfo(ABOUT)
        member.size, member.mode = len(text), 0o600
        made.addfile(member, io.BytesIO(text))
        body = out.getvalue()
    member = tarfile.TarInfo(DISK)
    member.size, member.mode = done["size_bytes"], 0o600
    return body + member.tobuf(tarfile.PAX_FORMAT)


def _patiently(fetch: Callable[[], T]) -> T:
    """Return what is fetched, from a node or a server that may just start again. Raises ApiError, Unreachable."""
    for again in range(RETRIES):
        try:
            return fetch()
        except Unreachable:
            if again == RETRIES - 1:
                raise
        except ApiError as error:
            if error.status < 500 or again == RETRIES - 1:
                raise
        time.sleep(RETRY_S * (again + 1))
    raise AssertionError("unreachable")


def read(file: Path) -> Machine:
    """Return the VM in an archive or an OVA. Raises ArchiveError, OSError."""
    try:
        with file.open("rb") as raw, tarfile.open(fileobj=cast("IO[bytes]", _SmallReads(raw)), mode="r:") as opened:
            members: dict[str, tarfile.TarInfo] = {}
            for count in itertools.count(1):
                if (member := opened.next()) is None:
                    break
                if count > MEMBERS_MAX:  # of any kind: a negative size lets older Pythons loop for ever
                    raise ArchiveError(f"{file} has more than {MEMBERS_MAX} members")
                if member.isreg() and not member.issparse():
                    members[member.name] = member

            def text(name: str) -> bytes:
                if members[name].size > ABOUT_BYTES_MAX:
                    raise ArchiveError(f"{name} in {file} has more than {ABOUT_BYTES_MAX} bytes")
                found = opened.extractfile(members[name])
                assert found is not None
                return found.read()

            if ABOUT in members and DISK in members:
                return _own(file, text(ABOUT), members[DISK])
            described = next((name for name in members if name.lower().endswith(".ovf")), None)
            if described is None:
                raise ArchiveError(f"{file} holds neither {ABOUT} and {DISK} nor a description of an OVA")
            sums = next((text(name) for name in members if name.lower().endswith(".mf")), b"")
            return _ova(file, text(described), sums, members)
    except tarfile.TarError as error:
        raise ArchiveError(f"{file} is no tar archive: {error}") from error


class _SmallReads:
    """A file for tarfile, which reads extended headers whole, however large they say they are. Raises ArchiveError."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.name, self.seek, self.tell = file.name, file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= READ_BYTES_MAX:
            raise ArchiveError(f"a header in {self.name} has more than {READ_BYTES_MAX} bytes")
        return self._file.read(count)


def _own(file: Path, text: bytes, member: tarfile.TarInfo) -> Machine:
    try:
        about = json.loads(text)
        if about["format"] != FORMAT:
            raise ArchiveError(f"{file} is of format {about['format']}, which is not known here; update this program")
        fields = {field: about["spec"][field] for field in CARRIED if field in about["spec"]}
        if about.get("firmware_state"):  # of a format 1 that an earlier program wrote: it is not there
            fields["firmware_state"] = about["firmware_state"]
        disk = Part(file, member.offset_data, member.size, "qcow2", str(about["sha256"]))
        return Machine(str(about["name"]), fields, disk)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArchiveError(f"{ABOUT} in {file} is damaged: {error!r}") from error


def _ova(file: Path, text: bytes, sums: bytes, members: dict[str, tarfile.TarInfo]) -> Machine:
    try:
        root = ElementTree.fromstring(text, forbid_dtd=True)
    except defusedxml.DefusedXmlException:
        raise ArchiveError(f"the description in {file} defines entities, which no OVA needs") from None
    except (ElementTree.ParseError, LookupError) as error:  # LookupError: an encoding that Python does not know
        raise ArchiveError(f"the description in {file} is no XML: {error}") from error
    systems = root.findall(f".//{OVF}VirtualSystem")
    if len(systems) != 1:
        raise ArchiveError(f"{file} holds {len(systems)} VMs; one is taken")
    system = systems[0]
    fields: Object = {}
    drives = []
    for item in system.findall(f"{OVF}VirtualHardwareSection/{OVF}Item"):
        kind = item.findtext(f"{RASD}ResourceType", "")
        if kind == CPU:
            fields["vcpus"] = _number(item, "VirtualQuantity")
        elif kind == MEMORY:
            fields["memory_mib"] = (_number(item, "VirtualQuantity") * _unit(item)) >> 20
        elif kind == DISK_DRIVE:
            drives.append(item.findtext(f"{RASD}HostResource", "").rpartition("/")[2])
    if not 0 < len(drives) <= DISKS_MAX:
        raise ArchiveError(f"the VM in {file} has {len(drives)} disks; 1 to {DISKS_MAX} are taken")
    for config in system.iter(f"{VMW}Config"):
        if config.get(f"{VMW}key") == "firmware" and config.get(f"{VMW}value") == "efi":
            fields["firmware"] = "uefi"
    files = {one.get(f"{OVF}id"): one.get(f"{OVF}href", "") for one in root.iter(f"{OVF}File")}
    disks = {one.get(f"{OVF}diskId"): files.get(one.get(f"{OVF}fileRef"), "") for one in root.iter(f"{OVF}Disk")}
    parts = []
    for name in (disks.get(drive, "") for drive in drives):
        if name not in members:
            raise ArchiveError(f"{file} lacks the disk {name!r} of its VM")
        stated = rf"^SHA256\({re.escape(name)}\)\s*=\s*([0-9a-fA-F]{{64}})\s*$"
        digest = re.search(stated, sums.decode("latin-1"), re.MULTILINE)
        sha256 = digest[1].lower() if digest else None
        parts.append(Part(file, members[name].offset_data, members[name].size, "vmdk", sha256))
    called = system.findtext(f"{OVF}Name") or system.get(f"{OVF}id") or ""
    return Machine(re.sub("[^a-z0-9]+", "-", called.lower()).strip("-")[:63], fields, parts[0], tuple(parts[1:]))


def _number(item: Element, field: str) -> int:
    text = item.findtext(f"{RASD}{field}", "")
    if not re.fullmatch("[0-9]{1,12}", text):
        raise ArchiveError(f"{field} of the VM is {text!r}, not a number")
    return int(text)


def _unit(item: Element) -> int:
    """Return how many bytes a unit of memory has: OVF writes ``byte * 2^20``."""
    found = re.fullmatch(r"\s*byte\s*\*\s*2\s*\^\s*([0-9]{1,2})\s*", item.findtext(f"{RASD}AllocationUnits", ""))
    return 1 << (int(found[1]) if found else 20)


def import_(
    client: Client, file: Path, name: str | None, node: str | None, timeout_s: float, start: bool = True,
    told: Told = lambda have, all_: None, pool: str | None = None,
) -> Object:  # fmt: skip
    """Create a VM from an archive or an OVA: its disk becomes the image ``NAME-disk``, of which the VM is made. Further
    ones, ``NAME-disk-2`` and so on, become volumes of these names in ``pool``, attached to it.

    What broke off goes on when it is called again. Raises ApiError, Unreachable, TimeoutError, ArchiveError, OSError.
    """
    machine = read(file)
    called = name or machine.name
    image = f"{called[:NAME_SHARE]}-disk"
    deadline = time.monotonic() + timeout_s
    volumes = []
    for number, disk in enumerate((machine.disk, *machine.more), 1):
        here = image if number == 1 else f"{image}-{number}"
        done = _uploaded(client, here, disk, node, timeout_s, told)
        if done["phase"] != "done":
            raise ArchiveError(f"disk {number} in {file} was not taken: {done['error']}")
        if machine.more:
            node = done["node"]  # what belongs together is made in one place
        if number > 1:
            volumes.append(_volume(client, here, node, pool, deadline))
    power = "running" if start and not volumes else "stopped"
    made = _made(client, called, image, deadline, {**machine.fields, "node": node, "power": power}, again=bool(volumes))
    for volume in volumes:
        if volume["vm"] is None:
            client.attach_volume(volume["id"], made["id"])
    if start and volumes:
        made = client.act("vms", made["id"], "start")
    return made


def _volume(client: Client, name: str, node: str | None, pool: str | None, deadline: float) -> Object:
    """Return a volume that began as a copy of the image of its name, ready; it may be there already."""
    begun = next((one for one in client.list("volumes") if (one["name"], one["image"]) == (name, name)), None)
    while begun is None:
        held = next((one for one in client.list("images") if one["name"] == name), None)
        if held is not None:
            size_mib = -(-held["disk_bytes"] >> 20)
            begun = client.create_volume(name, size_mib=size_mib, node=node, image=name, pool=pool)
        elif time.monotonic() > deadline:
            raise TimeoutError(f"no node says that it has image {name}")
        else:  # the node says within seconds that it has the image
            time.sleep(RETRY_S)
    ready = client.wait(
        "volumes", begun["id"], lambda now: now is None or now["phase"] != "creating",
        max(0.0, deadline - time.monotonic()),
    )  # fmt: skip
    if ready is None or ready["phase"] != "ready":
        raise ArchiveError(f"volume {name} was not made: {ready['error'] if ready else 'it is gone'}")
    return ready


def _made(client: Client, name: str, image: str, deadline: float, fields: Object, *, again: bool) -> Object:
    """Return a new VM; with ``again`` it may be one that was made before, and lacked its volumes."""
    while True:
        try:
            return client.create_vm(name=name, image=image, **fields)
        except ApiError as error:
            there = client.get("vms", name) if again and error.problem.get("field") == "name" else None
            if there is not None and (there["spec"]["image"], there["spec"]["power"]) == (image, "stopped"):
                return there
            # the node says within seconds that it has the image
            if error.problem.get("field") != "image" or time.monotonic() > deadline:
                raise
        time.sleep(RETRY_S)


def _uploaded(client: Client, image: str, disk: Part, node: str | None, timeout_s: float, told: Told) -> Object:
    known = (one for one in client.list("imports") if one["spec"]["name"] == image and one["phase"] != "failed")
    begun = next((one for one in known if one["spec"]["size_bytes"] == disk.size_bytes), None)
    if begun is None or (begun["phase"] == "done" and all(one["name"] != image for one in client.list("images"))):
        fields = {"size_bytes": disk.size_bytes, "sha256": disk.sha256, "format": disk.format, "node": node}
        begun = client.begin_import(image, **fields)
    if begun["phase"] == "receiving":
        client.upload(begun, disk.file, lambda have: told(have, disk.size_bytes), disk.offset)
    done = client.wait("imports", begun["id"], lambda now: now is None or now["finished_at"] is not None, timeout_s)
    if done is None:
        raise ArchiveError(f"the import of image {image} is gone")
    return done
