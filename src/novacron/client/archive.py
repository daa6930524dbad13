"""VMs as files: export to NovaCron's archive, import of that and of OVAs. What is in them: ``archive_format``."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from novacron import private_file
from novacron.client.api import Client
from novacron.client.archive_format import (
    ABOUT,
    ABOUT_BYTES_MAX,
    DESCRIBED,
    DISK,
    FORMAT,
    ArchivedDisk,
    ArchivedVm,
    carried,
    read,
)
from novacron.client.errors import ApiError, ArchiveError, Unreachable
from novacron.client.ovf_package import DiskPart, check_piece
from novacron.client.protocol import Object

NAME_SHARE = 56
"""Characters of a VM's name with which the names of its images and volumes begin."""
ATTEMPTS, RETRY_S = 5, 1.0
"""How long to bear with a node or a server that restarts: beyond what the client itself tries."""

OWN_PARTS = ("cpu_policy", "hugepages")
"""Fields of an order that replace those of the archive."""

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with how many bytes are there, and how many there will be."""


def export(
    client: Client, vm: str, file: Path, timeout_s: float, on_progress: Progress = lambda have, total: None
) -> Object:
    """Write a VM as it is now into a new ``file``. Call it again to resume after an interruption.

    Raises ApiError, Unreachable, TimeoutError, FileExistsError, ArchiveError.
    """
    if file.exists():
        raise FileExistsError(f"{file} exists")
    part = file.with_name(f"{file.name}.part")
    begun, described = _resumed(client, vm, part) or (client.act("vms", vm, "export"), _described(client, vm))
    done = client.wait("exports", begun["id"], lambda now: now is None or now["phase"] != "making", timeout_s)
    if done is None or done["phase"] != "ready":
        raise ArchiveError(f"VM {vm} was not exported: {done['error'] if done else 'its export is gone'}")
    head = _head(client, done, described)
    if not part.exists() or part.stat().st_size < len(head):
        private_file.write(part, head)  # it holds the VM's disk, and its TPM's secrets
    digest = hashlib.sha256()
    with part.open("rb") as there:
        there.seek(len(head))
        while held := there.read(1 << 20):
            digest.update(held)
    have = part.stat().st_size - len(head)
    with private_file.opened(part, "ab") as opened:
        while have < done["size_bytes"]:
            piece = _patiently(functools.partial(client.export_data, done["id"], have))
            if not piece:
                raise ArchiveError("the export is incomplete: try again")
            opened.write(piece)
            digest.update(piece)
            have += len(piece)
            on_progress(have, done["size_bytes"])
        if digest.hexdigest() != done["sha256"]:
            part.unlink()
            raise ArchiveError("the download is damaged: its checksum differs; try again")
        opened.write(bytes(-done["size_bytes"] % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE))
        opened.flush()
        os.fsync(opened.fileno())
    part.rename(file)
    client.delete("exports", done["id"])
    return done


def _resumed(client: Client, vm: str, part: Path) -> tuple[Object, Object] | None:
    """Return the export of which ``part`` is the beginning, and what it says people wrote about the VM, if its node
    still has it; otherwise remove ``part``."""
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
        export = client.get("exports", about["export"])
        if export["phase"] == "ready":
            head = _head(client, export, about["described"])
            if _beginning(part, len(head)) == head:
                return export, about["described"]
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


def _described(client: Client, vm: str) -> Object:
    """Return what people wrote about a VM; of one that is gone, nothing."""
    try:
        now = client.get("vms", vm)
    except ApiError as error:
        if error.status != 404:
            raise
        return {}
    return {field: now[field] for field in DESCRIBED if now.get(field)}


def _head(client: Client, done: Object, described: Object) -> bytes:
    """Return how an archive begins, the same each time: ``vm.json``, and the header of the disk."""
    remembered = _patiently(lambda: client.export_firmware_state(done["id"]))
    about = {
        "format": FORMAT, "name": done["vm_name"], "spec": carried(done["spec"]), "disk_bytes": done["disk_bytes"],
        "sha256": done["sha256"], "export": done["id"], "exported_at": done["created_at"],
        "macs": mac_addresses(done), "described": described,
        "firmware_state": {field: state for field, state in remembered.items() if state is not None},
    }  # fmt: skip
    text = json.dumps(about, indent=2).encode() + b"\n"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo(ABOUT)
        member.size, member.mode = len(text), 0o600
        archive.addfile(member, io.BytesIO(text))
        body = out.getvalue()
    member = tarfile.TarInfo(DISK)
    member.size, member.mode = done["size_bytes"], 0o600
    return body + member.tobuf(tarfile.PAX_FORMAT)


def _patiently(fetch: Callable[[], T]) -> T:
    """Return what is fetched, from a node or a server that may just start again. Raises ApiError, Unreachable."""
    for again in range(ATTEMPTS):
        try:
            return fetch()
        except Unreachable:
            if again == ATTEMPTS - 1:
                raise
        except ApiError as error:
            if error.status < 500 or again == ATTEMPTS - 1:
                raise
        time.sleep(RETRY_S * (again + 1))
    raise AssertionError("unreachable")


def mac_addresses(vm: Object) -> list[str]:
    """Return the MAC addresses in the spec of a VM or an export, in the order of its interfaces."""
    spec = vm["spec"]
    addresses = [nic["mac"] for nic in spec["nics"]] if spec["nics"] else [spec["mac"]]
    return [address for address in addresses if address is not None]


class ArchiveImport(NamedTuple):
    """What VM to make of an archive: under which name (None: the archive's own), where, and whether to start it."""

    name: str | None = None
    node: str | None = None
    pool: str | None = None
    """For volumes: the further disks."""
    start: bool = True
    timeout_s: float = 7200.0
    nics: Sequence[Object] | None = None
    """None: as the project's default is; empty: no network."""
    cpu_policy: str | None = None
    """None: the archive's; likewise ``hugepages``. Nodes here may have no room for such VMs."""
    hugepages: str | None = None
    keep_macs: bool | None = None
    """Give the interfaces the archive's MAC addresses, or new ones. None: those of a NovaCron archive that no other VM
    has, and new ones for an OVA."""


def import_(
    client: Client, file: Path, order: ArchiveImport, on_progress: Progress = lambda have, total: None
) -> Object:
    """Create a VM from an archive or an OVA: its disk becomes the image ``NAME-disk``, of which the VM is made. Further
    disks become the volumes ``NAME-disk-2`` and so on, attached to it.

    Call it again to resume after an interruption. Raises ApiError, Unreachable, TimeoutError, ArchiveError, OSError.
    """
    archived = read(file)
    name = order.name or archived.name
    if not name:
        raise ArchiveError(f"the VM's name in {file} is not valid here: give a new name")
    image = f"{name[:NAME_SHARE]}-disk"
    deadline = time.monotonic() + order.timeout_s
    node = order.node
    volumes = []
    for number, disk in enumerate((archived.disk, *archived.further_disks), 1):
        disk_image = image if number == 1 else f"{image}-{number}"
        if not disk.pieces:
            volumes.append(_blank_volume(client, disk_image, disk, node, order.pool, deadline))
            continue
        done = _uploaded(client, disk_image, disk, node, order.timeout_s, on_progress)
        if done["phase"] != "done":
            raise ArchiveError(f"disk {number} of {file} could not be imported: {done['error']}")
        if archived.further_disks:
            node = done["node"]  # all disks of a VM are made on one node
        if number > 1:
            volumes.append(_volume(client, disk_image, disk, node, order.pool, deadline))
    power = "running" if order.start and not volumes else "stopped"
    fields = {"name": name, "image": image, **archived.fields, **_interfaces(archived, order), "node": node}
    fields |= {field: value for field in OWN_PARTS if (value := getattr(order, field)) is not None}
    fields |= _disk_size(client, image, archived.disk, deadline)
    vm = _created(client, fields | {"power": power}, deadline, order, resumed=bool(volumes))
    return _with_volumes(client, vm, volumes, order.start) if volumes else vm


def _with_volumes(client: Client, vm: Object, volumes: list[Object], start: bool) -> Object:
    for volume in volumes:
        if volume["vm"] is None:
            client.attach_volume(volume["id"], vm["id"])
    return client.act("vms", vm["id"], "start") if start else vm


def _disk_size(client: Client, image: str, disk: ArchivedDisk, deadline: float) -> Object:
    """Return the size of a VM's disk, where its descriptor says more than its image has. Raises TimeoutError."""
    if not disk.capacity_bytes or disk.capacity_bytes <= _listed_image(client, image, deadline)["disk_bytes"]:
        return {}
    return {"disk_mib": -(-disk.capacity_bytes >> 20)}


def _volume(
    client: Client, name: str, disk: ArchivedDisk, node: str | None, pool: str | None, deadline: float
) -> Object:
    """Return a volume that began as a copy of the image of its name, once it is ready; it may exist already."""
    volumes = (volume for volume in client.list("volumes") if (volume["name"], volume["image"]) == (name, name))
    volume = next(volumes, None)
    if volume is None:
        image = _listed_image(client, name, deadline)
        size_mib = -(-max(image["disk_bytes"], disk.capacity_bytes) >> 20)
        volume = client.create_volume(name, size_mib=size_mib, node=node, image=name, pool=pool)
    return _ready_volume(client, volume, deadline)


def _blank_volume(
    client: Client, name: str, disk: ArchivedDisk, node: str | None, pool: str | None, deadline: float
) -> Object:
    """Return an empty volume of a disk's size, once it is ready; it may exist already."""
    volume = next((volume for volume in client.list("volumes") if volume["name"] == name), None)
    if volume is None:
        volume = client.create_volume(name, size_mib=max(1, -(-disk.size_bytes >> 20)), node=node, pool=pool)
    return _ready_volume(client, volume, deadline)


def _ready_volume(client: Client, volume: Object, deadline: float) -> Object:
    ready = client.wait(
        "volumes", volume["id"], lambda now: now is None or now["phase"] != "creating",
        max(0.0, deadline - time.monotonic()),
    )  # fmt: skip
    if ready is None or ready["phase"] != "ready":
        raise ArchiveError(f"volume {volume['name']} could not be created: {ready['error'] if ready else 'it is gone'}")
    return ready


def _listed_image(client: Client, name: str, deadline: float) -> Object:
    """Return an image once its node has reported it, which takes seconds. Raises TimeoutError."""
    while True:
        image = next((image for image in client.list("images") if image["name"] == name), None)
        if image is not None:
            return image
        if time.monotonic() > deadline:
            raise TimeoutError(f"no node has reported image {name}")
        time.sleep(RETRY_S)


def _interfaces(archived: ArchivedVm, order: ArchiveImport) -> Object:
    """Return the fields of a new VM that describe its interfaces."""
    keep = archived.own if order.keep_macs is None else order.keep_macs
    macs = archived.macs if keep else ()
    if not order.nics:
        return ({"mac": macs[0]} if macs else {}) | ({} if order.nics is None else {"nics": []})
    kept = itertools.zip_longest(order.nics, macs[: len(order.nics)])
    return {"nics": [{"mac": address, **nic} for nic, address in kept]}


def _begun(client: Client, fields: Object) -> Object | None:
    """Return a VM that an earlier import has created and not started."""
    existing = client.get("vms", fields["name"])
    image, power = existing["spec"]["image"], existing["spec"]["power"]
    return existing if (image, power) == (fields["image"], "stopped") else None


def _let_go_of_mac(error: ApiError, fields: Object, order: ArchiveImport) -> bool:
    """Let an interface have a new MAC address if another VM has the archive's; say whether that is so."""
    interfaces = {"mac": fields} | {
        f"nics[{number}].mac": fields["nics"][number]
        for number, nic in enumerate(order.nics or ())
        if not nic.get("mac")
    }
    if order.keep_macs is not None or error.status != 409:
        return False
    return interfaces.get(str(error.problem.get("field")), {}).pop("mac", None) is not None


def _created(client: Client, fields: Object, deadline: float, order: ArchiveImport, *, resumed: bool) -> Object:
    """Return a new VM; with ``resumed`` it may be one that was created before and lacked its volumes."""
    while True:
        try:
            return client.create_vm(**fields)
        except ApiError as error:
            field = error.problem.get("field")
            if resumed and field == "name" and (existing := _begun(client, fields)) is not None:
                return existing
            if _let_go_of_mac(error, fields, order):
                continue
            # A node reports a new image within seconds.
            if field != "image" or time.monotonic() > deadline:
                raise
        time.sleep(RETRY_S)


@contextlib.contextmanager
def _in_one_piece(disk: ArchivedDisk) -> Iterator[DiskPart]:
    """Yield the bytes of a disk whose checksums are right; several pieces are put together in a temporary file.

    Raises ArchiveError, OSError.
    """
    if disk.sha256 is None:
        for piece in disk.pieces:
            check_piece(piece)
    if len(disk.pieces) == 1:
        yield disk.pieces[0]
        return
    with tempfile.NamedTemporaryFile(prefix="novacron-") as together:
        for piece in disk.pieces:
            for data in piece.read():
                together.write(data)
        together.flush()
        yield DiskPart(Path(together.name), 0, disk.size_bytes)


def _uploaded(
    client: Client, image: str, disk: ArchivedDisk, node: str | None, timeout_s: float, on_progress: Progress
) -> Object:
    started = (
        entry for entry in client.list("imports")
        if entry["spec"]["name"] == image and entry["phase"] != "failed"
        and entry["spec"]["size_bytes"] == disk.size_bytes
    )  # fmt: skip
    current = next(started, None)
    removed = current is not None and current["phase"] == "done" and all(
        other["name"] != image for other in client.list("images")
    )  # fmt: skip
    if current is None or removed:
        fields = {"size_bytes": disk.size_bytes, "sha256": disk.sha256, "format": disk.format, "node": node}
        current = client.begin_import(image, **fields)
    if current["phase"] == "receiving":
        with _in_one_piece(disk) as piece:
            client.upload(current, piece.file, lambda have: on_progress(have, disk.size_bytes), piece.offset)
    done = client.wait("imports", current["id"], lambda now: now is None or now["finished_at"] is not None, timeout_s)
    if done is None:
        raise ArchiveError(f"the import of image {image} is gone")
    return done
