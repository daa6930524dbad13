"""A VM as an OVF descriptor describes it (DMTF DSP0243, versions 0.9 to 2.1), written by VMware, VirtualBox and others.

Elements are found by their local names: each version, and some vendors, have namespaces of their own. What NovaCron
can't give a VM is named in ``dropped``; what would make another VM of it is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import defusedxml
from defusedxml import ElementTree

from novacron.client.errors import ArchiveError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element  # nosec B405 (a type: defusedxml parses)

DISKS_MAX = 17
XSI_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"
CPU, MEMORY, NIC, FLOPPY, CD, DVD, DISK = "3", "4", "10", "14", "15", "16", "17"
"""Kinds of virtual hardware (CIM_ResourceAllocationSettingData.ResourceType)."""
CONTROLLERS = ("5", "6", "20")
"""IDE, SCSI and other storage controllers: part of how a disk was attached, which is chosen anew here."""
TAKEN = (CPU, MEMORY, DISK, *CONTROLLERS)
KINDS = {
    "7": "a Fibre Channel adapter", "8": "an InfiniBand adapter",
    "18": "a tape drive", "19": "a storage extent", "21": "a serial port",
    "22": "a parallel port", "23": "a USB controller", "24": "a graphics adapter", "35": "a sound card",
    FLOPPY: "a floppy drive", CD: "a CD drive", DVD: "a CD drive",
}  # fmt: skip
UNITS = {
    "": 20, "byte": 0, "bytes": 0, "kilobytes": 10, "kb": 10, "megabytes": 20, "mb": 20, "gigabytes": 30, "gb": 30,
    "terabytes": 40, "tb": 40,
}  # fmt: skip
"""Powers of two; DSP0243 1.0 wrote words. Without a unit, memory is in megabytes everywhere."""
SECTIONS = frozenset((
    "DiskSection", "NetworkSection", "VirtualHardwareSection", "ProductSection", "EulaSection",
    "DeploymentOptionSection", "OperatingSystemSection", "AnnotationSection",
))  # fmt: skip
"""Parts of a descriptor that are read here, or about which there is a sentence of their own."""
WINDOWS = {"os": "windows10", "disk_bus": "sata", "nic_model": "e1000", "firmware": "bios"}
"""What a guest with Windows finds here: devices that it has drivers for, and the firmware that others have."""
LETTERS = {"ß": "ss", "æ": "ae", "ø": "o", "đ": "d", "ł": "l", "þ": "th", "ð": "d", "œ": "oe"}


class OvfDisk(NamedTuple):
    """A disk of a VM. ``href``: the file that it begins as, None for a blank one of ``size_bytes``. ``chunk_bytes``:
    the file is in pieces of this size, ``HREF.000000000`` and so on; None: it is in one. ``file_bytes``: how long the
    file is said to be, None when that is not said."""

    href: str | None
    size_bytes: int
    chunk_bytes: int | None = None
    file_bytes: int | None = None


class OvfMachine(NamedTuple):
    """A VM. ``name``: as it is written; ``fields``: of ``POST /api/v1/vms``; ``dropped``: what it had and will not have
    here, each in a sentence."""

    name: str
    fields: dict[str, object]
    disks: tuple[OvfDisk, ...]
    dropped: tuple[str, ...]
    macs: tuple[str, ...] = ()
    """MAC addresses of its interfaces, in their order, as far as they are written."""


def parse(text: bytes) -> OvfMachine:
    """Return the VM of a descriptor, in its default configuration. Raises ArchiveError."""
    root = _root(text)
    systems = list(_all(root, "VirtualSystem"))
    if len(systems) != 1:
        advice = ": export them one by one" if systems else ""
        raise ArchiveError(f"the descriptor holds {len(systems)} VMs; only one is supported{advice}")
    system = systems[0]
    chosen = _configuration(root)
    items = _items(system, chosen)
    properties = _properties(root, chosen)
    fields: dict[str, object] = dict(WINDOWS) if _is_windows(system) else {}
    cpus = [item for item in items if _text(item, "ResourceType") == CPU]
    if cpus:
        fields["vcpus"] = sum(_number(item, "VirtualQuantity", properties) for item in cpus)
    memory = [item for item in items if _text(item, "ResourceType") == MEMORY]
    if memory:
        sizes = (
            _number(item, "VirtualQuantity", properties) * _unit(_text(item, "AllocationUnits")) for item in memory
        )
        fields["memory_mib"] = sum(sizes) >> 20
    if (firmware := _firmware(system)) is not None:
        fields["firmware"] = firmware
    disks = tuple(_disks(root, items, properties))
    if not disks:
        raise ArchiveError("the VM of the descriptor has no disk; only one with a disk is supported")
    if len(disks) > DISKS_MAX:
        raise ArchiveError(f"the VM of the descriptor has {len(disks)} disks; up to {DISKS_MAX} are supported")
    if disks[0].href is None:
        raise ArchiveError(
            "the first disk of the VM is blank: there is nothing that it could boot from; make such a VM with: novacron"
            " vm create --image blank"
        )
    dropped = list(_dropped(root, system, items, properties))
    dropped += _unused_files(root, disks)
    name = _text(system, "Name") or _attribute(system, "id") or ""
    return OvfMachine(name, fields, disks, tuple(dropped), tuple(_macs(items)))


def plain_name(name: str) -> str:
    """Return a name as a VM here can have it: ``Störung 2`` becomes ``storung-2``; empty if nothing of it can stay."""
    lower = "".join(LETTERS.get(letter, letter) for letter in name.lower())
    ascii_ = unicodedata.normalize("NFKD", lower).encode("ascii", "ignore").decode()
    return re.sub("[^a-z0-9]+", "-", ascii_).strip("-")[:63].strip("-")


def _root(text: bytes) -> Element:
    try:
        root = ElementTree.fromstring(text, forbid_dtd=True)
    except defusedxml.DefusedXmlException:
        raise ArchiveError("the descriptor defines entities, which no OVF needs") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # also an encoding that Python does not know
        raise ArchiveError(f"the descriptor is no XML: {error}") from error
    if _local(root.tag) != "Envelope":
        raise ArchiveError(
            f"the descriptor is not an OVF file: it begins with {_local(root.tag)[:40]!r}, not with Envelope"
        )
    return root


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _all(element: Element, name: str) -> Iterator[Element]:
    """Yield an element's descendants of a name; OVF 0.9 calls them Content or Section, with the name as their type."""
    for child in element.iter():
        if not isinstance(child.tag, str):  # a comment
            continue
        local = _local(child.tag)
        if local == name or (
            local in ("Content", "Section") and (child.get(XSI_TYPE) or "").rpartition(":")[2] == f"{name}_Type"
        ):
            yield child


def _text(element: Element, name: str) -> str:
    """Return the text of a child, empty if there is none."""
    for child in element:
        if isinstance(child.tag, str) and _local(child.tag) == name:
            return (child.text or "").strip()
    return ""


def _attribute(element: Element, name: str) -> str | None:
    return next((value for key, value in element.attrib.items() if _local(key) == name), None)


def _configurations(root: Element) -> list[Element]:
    return [element for element in _all(root, "Configuration") if _attribute(element, "id") is not None]


def _configuration(root: Element) -> str | None:
    """Return the name of the default configuration, None when there are none."""
    configurations = _configurations(root)
    marked = (section for section in configurations if (_attribute(section, "default") or "").strip() in ("true", "1"))
    default = next(marked, configurations[0] if configurations else None)
    return None if default is None else _attribute(default, "id")


def _items(system: Element, chosen: str | None) -> list[Element]:
    """Return the hardware of a configuration. One with the number of another, and a configuration, takes its place
    there; those with bounds only say which values would do."""
    sections = list(_all(system, "VirtualHardwareSection"))
    if len(sections) > 1:  # alternatives: the first is preferred (DSP0243, section 8.1)
        sections = sections[:1]
    items: dict[str, Element] = {}
    for number, item in enumerate(item for section in sections for item in section if _is_item(item)):
        if _attribute(item, "bound") not in (None, "normal"):
            continue
        in_configurations = (_attribute(item, "configuration") or "").split()
        if in_configurations and chosen not in in_configurations:
            continue
        instance = _text(item, "InstanceID") or _text(item, "InstanceId") or f"#{number}"
        if instance not in items or in_configurations:
            items[instance] = item
    return list(items.values())


def _is_item(element: Element) -> bool:
    return isinstance(element.tag, str) and _local(element.tag) in ("Item", "StorageItem", "EthernetPortItem")


def _properties(root: Element, chosen: str | None) -> dict[str, str]:
    """Return the values that properties have in a configuration unless somebody sets others."""
    return {
        key: _default(element, chosen)
        for element in _all(root, "Property")
        if (key := _attribute(element, "key")) is not None
    }


def _default(property: Element, chosen: str | None) -> str:
    in_configuration = (
        _attribute(value, "value") for value in _all(property, "Value") if _attribute(value, "configuration") == chosen
    )
    return (next(in_configuration, None) if chosen else None) or _attribute(property, "value") or ""


def _value(text: str, properties: dict[str, str]) -> str:
    """Return a text, or the value of the property that it names as ``${NAME}``."""
    named = re.fullmatch(r"\$\{([^}]+)\}", text)
    return properties.get(named[1], text) if named else text


def _number(item: Element, field: str, properties: dict[str, str]) -> int:
    text = _value(_text(item, field), properties)
    if not re.fullmatch("[0-9]{1,12}", text):
        of = (_text(item, "ElementName") or _text(item, "Caption"))[:40]
        raise ArchiveError(f"{field} of the VM's hardware {of!r} is {text[:40]!r}, not a number")
    return int(text)


def _unit(text: str) -> int:
    """Return how many bytes a unit has: ``byte * 2^20``, ``MegaBytes``. Raises ArchiveError."""
    plain = re.sub(r"\s", "", text.lower())
    if plain in UNITS:
        return 1 << UNITS[plain]
    power = re.fullmatch(r"bytes?\*(\d{1,15})(?:\^(\d{1,2}))?", plain)
    size = 0 if power is None else pow(int(power[1]), int(power[2] or 1))
    if not 0 < size <= 1 << 50:
        raise ArchiveError(f"the unit {text[:40]!r} is not known here")
    return size


def _disks(root: Element, items: list[Element], properties: dict[str, str]) -> Iterator[OvfDisk]:
    """Yield the disks in the order in which they are attached."""
    files = {_attribute(element, "id"): element for element in _all(root, "File")}
    disks = {_attribute(element, "diskId"): element for element in _all(root, "Disk")}
    controllers = [_text(item, "InstanceID") for item in items if _text(item, "ResourceType") in CONTROLLERS]

    def place(drive: Element) -> tuple[int, int]:
        parent, address = _text(drive, "Parent"), _text(drive, "AddressOnParent")
        at = controllers.index(parent) if parent in controllers else len(controllers)
        return at, int(address) if re.fullmatch("[0-9]{1,6}", address) else 0

    for drive in sorted((item for item in items if _text(item, "ResourceType") == DISK), key=place):
        resource = _text(drive, "HostResource")
        if not resource:
            raise ArchiveError("the VM has a disk of which the descriptor does not say what is on it (no HostResource)")
        kind, _, id = resource.rpartition("/")
        if kind.endswith("file") and id in files:
            yield _disk_of_file(files[id], 0)
            continue
        disk = disks.get(id)
        if disk is None:
            raise ArchiveError(f"the VM has a disk {resource[:80]!r} that the descriptor does not describe")
        if _attribute(disk, "parentRef"):
            raise ArchiveError(f"disk {id!r} lies over another disk (a parent); export the VM without snapshots")
        reference = _attribute(disk, "fileRef")
        size = _capacity(disk, properties) if _attribute(disk, "capacity") or not reference else 0
        if reference:
            if reference not in files:
                raise ArchiveError(f"disk {id!r} is in a file {reference[:80]!r} that the descriptor does not name")
            yield _disk_of_file(files[reference], size)
        else:
            yield OvfDisk(None, size)


def _disk_of_file(file: Element, size_bytes: int) -> OvfDisk:
    chunk, length = _attribute(file, "chunkSize"), (_attribute(file, "size") or "").strip()
    if chunk is not None and not re.fullmatch("[1-9][0-9]{0,14}", chunk):
        raise ArchiveError(f"the size of a file's pieces (chunkSize) is {chunk[:40]!r}, not a number")
    if length and not re.fullmatch("[0-9]{1,15}", length):
        raise ArchiveError(f"the size of a file (ovf:size) is {length[:40]!r}, not a number")
    href = _attribute(file, "href") or ""
    return OvfDisk(href, size_bytes, int(chunk) if chunk else None, int(length) if length else None)


def _capacity(disk: Element, properties: dict[str, str]) -> int:
    text = _value(_attribute(disk, "capacity") or "", properties)
    if not re.fullmatch("[0-9]{1,15}", text):
        raise ArchiveError(f"the capacity of a disk is {text[:40]!r}, not a number")
    units = _attribute(disk, "capacityAllocationUnits")
    return int(text) * (1 if units is None else _unit(units))


def _firmware(system: Element) -> str | None:
    """Return the firmware that VMware or VirtualBox names; None if neither does."""
    settings = {
        _attribute(element, "key"): (_attribute(element, "value") or "").lower()
        for name in ("Config", "ExtraConfig")
        for element in _all(system, name)
    }
    uefi = settings.get("firmware") == "efi" or any(
        (_attribute(element, "type") or "").upper().startswith("EFI") for element in _all(system, "Firmware")
    )
    if not uefi:
        return None
    return "uefi-secure" if settings.get("bootOptions.efiSecureBootEnabled") == "true" else "uefi"


def _dropped(root: Element, system: Element, items: list[Element], properties: dict[str, str]) -> Iterator[str]:
    yield from filter(None, map(_dropped_item, items))
    if properties:
        yield f"{len(properties)} properties for its guest ({', '.join(sorted(properties))[:120]})"
    configurations = _configurations(root)
    if len(configurations) > 1:
        yield f"{len(configurations) - 1} of its {len(configurations)} configurations: the default one is taken"
    if len(list(_all(system, "VirtualHardwareSection"))) > 1:
        yield "its alternative descriptions of hardware: the first one is taken"
    for section, text in (("EulaSection", "license agreement"), ("AnnotationSection", "annotation")):
        if any(True for _ in _all(root, section)):
            yield f"its {text}: read it in the descriptor"
    unknown = sorted({name for element in root.iter() if (name := _section(element)) and name not in SECTIONS})
    if unknown:
        yield f"what its sections {', '.join(unknown)[:200]} ask for: nothing here does that"


def _dropped_item(item: Element) -> str:
    """Return what a VM loses with an item of hardware; nothing for what it will have here."""
    kind = _text(item, "ResourceType")
    name = (_text(item, "ElementName") or _text(item, "Caption"))[:80]
    if kind == NIC:
        advice = "give the VM one with --network, and its address with --keep-mac"
        return f"interface {name!r} ({_interface(item)}): {advice}"
    if kind in KINDS:
        return f"{KINDS[kind]} {name!r}"
    return "" if kind in TAKEN else _other_hardware(item, name)


def _other_hardware(item: Element, name: str) -> str:
    model = _text(item, "ResourceSubType")[:40]
    if "tpm" in model.lower():
        return f"a TPM {name!r}, and the keys in it"
    return f"hardware {name!r} ({model or 'of kind ' + (_text(item, 'ResourceType')[:10] or 'unknown')})"


def _section(element: Element) -> str:
    """Return the name of a section; empty for other elements."""
    if not isinstance(element.tag, str):
        return ""
    local = _local(element.tag)
    if local == "Section":  # OVF 0.9
        return (element.get(XSI_TYPE) or local).rpartition(":")[2].removesuffix("_Type")[:60]
    return local[:60] if local.endswith("Section") else ""


def _unused_files(root: Element, disks: tuple[OvfDisk, ...]) -> Iterator[str]:
    """Say which files of the package are not those of the VM's disks: firmware's memory, CDs, texts."""
    taken = {disk.href for disk in disks}
    files = [href for file in _all(root, "File") if (href := _attribute(file, "href")) and href not in taken]
    if files:
        yield f"{len(files)} files of the package ({', '.join(files)[:120]})"


def _is_windows(system: Element) -> bool:
    """Say whether VMware, VirtualBox or the descriptor's own words call the guest a Windows."""
    for section in _all(system, "OperatingSystemSection"):
        known_as = (_attribute(section, "osType"), _text(section, "OSType"), _text(section, "Description"))
        if any(re.match(r"(?i)(microsoft )?win", text or "") for text in known_as):
            return True
    return False


def _macs(items: list[Element]) -> Iterator[str]:
    for item in items:
        digits = re.sub("[:.-]", "", _text(item, "Address")).lower()
        if _text(item, "ResourceType") == NIC and re.fullmatch("[0-9a-f]{12}", digits):
            yield bytes.fromhex(digits).hex(":")


def _interface(item: Element) -> str:
    model, mac, network = (_text(item, field)[:40] for field in ("ResourceSubType", "Address", "Connection"))
    parts = [model, f"MAC {mac}" if mac else "", f"network {network}" if network else ""]
    return ", ".join(part for part in parts if part) or "of no model"
