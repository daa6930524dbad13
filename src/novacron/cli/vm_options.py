"""The options of ``novacron vm create`` and ``vm set``: one line for each field of a VM.

Type, default and whether a field can change come from the model, by ``novacron.client.choices``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from novacron.cli import metadata, output
from novacron.cli.names import names_of
from novacron.cli.options import Option, option, zero_removes
from novacron.cli.output import Object
from novacron.client.choices import VM_FIELDS, AntiAffinityScope, Display, Power

BOOT = "Boot"
SIZE, RUN, GUEST, PLACE, NET, SEED = "Size", "Start and availability", "Hardware", "Placement", "Network", "cloud-init"
NEWEST = "newest"
"""The machine type of a VM for which none is chosen."""


class VmOption(NamedTuple):
    """An option for a field of a VM."""

    field: str
    panel: str
    help: str
    flag: str | None = None
    change_help: str | None = None
    """Help of ``vm set``, where it differs."""
    yes_no: Callable[[bool], str] | None = None
    """The option is a switch for a field that is not: makes the field's value of it."""


NO_NETWORK = "none"
VM_OPTIONS = (
    VmOption("vcpus", SIZE, "virtual CPUs", None, "virtual CPUs; a running VM can only get more, up to its maximum"),
    VmOption(
        "memory_mib", SIZE, "memory, such as 512M or 4G", "--memory",
        "memory, such as 512M or 4G; a running VM can grow to its maximum, and returns memory if the size is smaller",
    ),
    VmOption("vcpus_max", SIZE, "maximum number of virtual CPUs while the VM runs"),
    VmOption("memory_max_mib", SIZE, "maximum memory while the VM runs, such as 16G", "--memory-max"),
    VmOption(
        "disk_mib", SIZE, "size of its disk, such as 20G; by default the image's", "--disk",
        "size of its disk, such as 20G; can only grow, also while the VM runs",
    ),
    VmOption("disk_iops", SIZE, "limit of reads and writes a second on its disk"),
    VmOption("disk_bytes_per_s", SIZE, "limit of bytes a second on its disk", "--disk-throughput"),
    VmOption("power", RUN, "start the VM at once", "--start/--no-start", None, lambda start: _power(start).value),
    VmOption("restart", RUN, "restart the VM when it ends unexpectedly: always, only after a crash, or never"),
    VmOption("start_order", RUN, "VMs that start together on a node start in this order, lowest first"),
    VmOption("start_delay_s", RUN, "seconds that its node waits after starting it before VMs with a higher start order",
             "--start-delay"),
    VmOption("protected", RUN, "refuse to delete the VM", "--protect"),
    VmOption("ha", RUN, "restart the VM on another node when its node fails"),
    VmOption("ha_priority", RUN, "VMs of a failed node restart in this order, highest first"),
    VmOption("os", GUEST, "operating system of the guest: sets the VM's defaults"),
    VmOption("disk_bus", GUEST, "controller of its disk"),
    VmOption("nic_model", GUEST, "model of its network interfaces"),
    VmOption("boot_once", BOOT, "kind of device to boot from at the next start only"),
    VmOption("disk_boot_order", BOOT, "position of its disk in the boot order; lowest first"),
    VmOption("network_boot_order", BOOT, "position of its network interfaces in the boot order, for PXE"),
    VmOption("kernel", BOOT, "boot file to boot as the kernel"),
    VmOption("initrd", BOOT, "boot file to use as the initial RAM disk"),
    VmOption("kernel_arguments", BOOT, "arguments of the kernel"),
    VmOption("firmware", GUEST, "firmware that boots the VM", None, "firmware that boots the VM, while it is off"),
    VmOption("tpm", GUEST, "add a TPM 2.0", None, "whether it has a TPM 2.0, while it is off"),
    VmOption(
        "display", GUEST, "add a VGA display", "--display/--no-display", "a VGA display, while it is off",
        lambda vga: _display(vga).value,
    ),
    VmOption("own_disk", GUEST, "create the VM's disk from its image, or no disk", "--disk-of-image/--no-disk"),
    VmOption(
        "cpu", GUEST, "processor: one that every node supports, or the node's own", None,
        "processor: one that every node supports, or the node's own; chosen again at the next start; VM must be off",
    ),
    VmOption("cpu_flags", GUEST, "additional CPU feature, such as avx2; can be repeated", "--cpu-flag"),
    VmOption(
        "machine", GUEST, "versioned machine type, like pc-i440fx-7.2; by default its node's newest", None,
        "versioned machine type, like pc-i440fx-7.2, while it is off; newest: its node's newest",
    ),
    VmOption("smbios_manufacturer", GUEST, "manufacturer of the machine, as the guest sees it"),
    VmOption("smbios_serial", GUEST, "serial number of the machine, as the guest sees it"),
    VmOption("smbios_asset_tag", GUEST, "asset tag of the machine, as the guest sees it"),
    VmOption("serial_ports", GUEST, "serial ports beyond the console's, from 0 to 3: see vm console --serial", None,
             "serial ports beyond the console's, from 0 to 3, while it is off"),
    VmOption("usb", GUEST, "USB device: tablet, keyboard or mouse; can be repeated", None,
             "USB device: tablet, keyboard or mouse, while it is off; can be repeated"),
    VmOption("cpu_policy", GUEST, "share the node's CPUs with other VMs, or dedicate one to each virtual CPU", None,
             "share the node's CPUs with other VMs, or dedicate one to each virtual CPU, while it is off"),
    VmOption("hugepages", GUEST, "size of the node's huge pages that its memory consists of", None,
             "size of the node's huge pages that its memory consists of, while it is off"),
    VmOption("numa_nodes", GUEST, "number of NUMA nodes of the guest; splits its CPUs and memory evenly", None,
             "number of NUMA nodes of the guest, while it is off; splits its CPUs and memory evenly"),
    VmOption("devices", GUEST, "PCI device of the node to pass through, like 8086:10fb; can be repeated", "--device"),
    VmOption("address", NET, "the guest's IPv4 address, such as 10.77.0.10/24"),
    VmOption("mac", NET, "MAC address of its only interface; by default a free one"),
)  # fmt: skip


def _power(start: bool) -> Power:
    return Power.RUNNING if start else Power.STOPPED


def _display(vga: bool) -> Display:
    return Display.VGA if vga else Display.NONE


CLEARED_BY: dict[type, str] = {int: "; 0 removes it", str: '; "" removes it'}


def _same(value: Any) -> Any:  # noqa: ANN401 - each option has its type
    return value


def _create_option(entry: VmOption, *, defaults: bool = True) -> Option:
    """Return an option of ``vm create``, or, without ``defaults``, of a template that need not set the field."""
    field, flag = VM_FIELDS[entry.field], entry.flag
    if entry.yes_no is not None:
        return option(entry.field, bool, flag, help=entry.help, default=defaults or None, panel=entry.panel,
                      convert=entry.yes_no)  # fmt: skip
    type_: Any = list[str] if field.type is list else field.type
    default = field.default if defaults and field.type is not list and not field.by_os else None
    if entry.field.endswith("_mib"):
        return option(entry.field, str, flag, help=entry.help, default=default and f"{default}M", panel=entry.panel,
                      convert=output.parse_mib, metavar="SIZE")  # fmt: skip
    if field.type is bool:
        flag = _switch(entry)
    return option(entry.field, type_, flag, help=entry.help, default=default, panel=entry.panel)


def _switch(entry: VmOption) -> str:
    """Return the flags of a switch: on and off."""
    name = (entry.flag or f"--{entry.field.replace('_', '-')}").removeprefix("--")
    return f"--{name}" if "/" in name else f"--{name}/--no-{name}"


def _change_option(entry: VmOption) -> Option:
    field = VM_FIELDS[entry.field]
    text = entry.change_help or entry.help
    convert: Callable[[Any], Any] = _same
    size = entry.field.endswith("_mib")
    if entry.field == "machine":
        convert = _newest_is_none
    elif field.clearable:
        text, convert = text + CLEARED_BY.get(field.type, ""), (_mib_or_none if size else zero_removes)
    elif size:
        convert = output.parse_mib
    flag = entry.flag
    if entry.yes_no is not None:
        return option(entry.field, bool, flag, help=text, panel=entry.panel, convert=entry.yes_no)
    if field.type is bool:
        flag = _switch(entry)
    if size:
        return option(entry.field, str, flag, help=text, panel=entry.panel, convert=convert, metavar="SIZE")
    if field.type is list:
        text, convert = f'{text}; "" removes all', _given
    type_: Any = list[str] if field.type is list else field.type
    return option(entry.field, type_, flag, help=text, panel=entry.panel, convert=convert)


def networks_of_template(networks: list[str]) -> list[Object]:
    """Return the interfaces of a template's VMs: none has an address there."""
    return [{"network": network} for network in networks]


def _newest_is_none(text: str) -> str | None:
    return None if text == NEWEST else text


def _mib_or_none(size: str) -> int | None:
    return zero_removes(output.parse_mib(size))


def lines_of(paths: list[Path]) -> list[str]:
    """Return the lines of files, without empty ones and comments."""
    lines = [line for path in paths for line in path.read_text().splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def interfaces(networks: list[str]) -> list[Object]:
    """Return the interfaces that ``NETWORK[=ADDRESS][,mac=MAC][,address6=ADDRESS]`` asks for; ``none`` alone asks for
    no network."""
    if networks == [NO_NETWORK]:
        return []
    return [_interface(text) for text in networks]


def _interface(text: str) -> Object:
    place, *settings = text.split(",")
    name, _, address = place.partition("=")
    if name == NO_NETWORK:
        raise typer.BadParameter("--network none can't be combined with other networks")
    interface: Object = {"network": name, "address": address or None, "groups": []}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in ("mac", "address6") or not value:
            raise typer.BadParameter(f"--network {text}: {setting!r} is not mac=ADDRESS or address6=ADDRESS")
        interface[key] = value
    return interface


DISK_KEYS = {"size": "size_mib", "bus": "bus", "image": "image", "boot": "boot_order", "pool": "pool"}


def disk_options(texts: list[str]) -> list[Object]:
    """Return the disks that ``SIZE``, or ``size=SIZE`` and other settings, describe."""
    return [_disk(text) for text in texts]


def _disk(text: str) -> Object:
    if "=" not in text:
        return {"size_mib": output.parse_mib(text)}
    settings = dict(part.partition("=")[::2] for part in text.split(","))
    unknown = next((key for key, value in settings.items() if key not in DISK_KEYS or not value), None)
    if unknown is not None:
        raise typer.BadParameter(f"--disk {text}: {unknown!r} is none of {', '.join(f'{key}=' for key in DISK_KEYS)}")
    disk: Object = {DISK_KEYS[key]: value for key, value in settings.items()}
    if "size" in settings:
        disk["size_mib"] = output.parse_mib(settings["size"])
    if "boot" in settings:
        disk["boot_order"] = _whole(settings["boot"], f"--disk {text}: boot")
    return disk


def _whole(text: str, what: str) -> int:
    if not re.fullmatch(r"\d{1,2}", text, re.ASCII):
        raise typer.BadParameter(f"{what} must be a position in the boot order, from 0 to 99, not {text!r}")
    return int(text)


def with_disks(fields: Object) -> Object:
    """Return the fields of a new VM in which the first of ``disks`` is its own, made of ``image``, and the others are
    further ones. Raises typer.BadParameter."""
    own, *further = [dict(disk) for disk in fields.get("disks", [])] or [{}]
    if "pool" in own:
        raise typer.BadParameter("--disk: the first disk is the VM's own, which can't be in a pool")
    names = {"size_mib": "disk_mib", "bus": "disk_bus", "boot_order": "disk_boot_order", "image": "image"}
    rest = {field: value for field, value in fields.items() if field != "disks"}
    return rest | {names[field]: value for field, value in own.items()} | ({"disks": further} if further else {})


EMPTY_DRIVE = "none"


def drives(isos: list[str]) -> list[Object]:
    """Return the CD-ROM drives with these ISOs in them."""
    return [{"iso": None if iso == EMPTY_DRIVE else iso} for iso in isos]


def chosen_or_new(addresses: list[str]) -> list[str | None]:
    """Return MAC addresses as the API takes them: ``new`` is null, for a free one."""
    return [None if address == "new" else address for address in addresses]


def _given(texts: list[str]) -> list[str]:
    """Return what is not empty: an empty text stands for nothing at all."""
    return [text for text in texts if text]


def labels(texts: list[str]) -> dict[str, str]:
    return output.parse_labels(_given(texts))


def _or_none(text: str) -> str | None:
    return text or None


SCOPE_HELP = "minimum separation of VMs in an anti-affinity group"
PLACEMENT_OPTIONS = (
    option("placement.labels", list[str], "--require-label", panel=PLACE, convert=labels,
           help="KEY=VALUE that the node must have as a label; can be repeated"),
    option("placement.tolerations", list[str], "--tolerate", panel=PLACE, convert=_given,
           help="node taint to tolerate; can be repeated"),
    option("placement.affinity", str, help="group whose VMs run on the same node", panel=PLACE, convert=_or_none),
    option("placement.anti_affinity", str, help="group whose VMs run apart from each other", panel=PLACE,
           convert=_or_none),
    option("placement.spread", str, help="group whose VMs are spread over sites, zones and nodes", panel=PLACE,
           convert=_or_none),
)  # fmt: skip
SEED_OPTIONS = (
    option("cloud_init.hostname", str, help="host name; by default the VM's name", panel=SEED),
    option("cloud_init.ssh_keys", list[Path], "--ssh-key", panel=SEED, convert=lines_of,
           help="file with public SSH keys; can be repeated"),
    option("cloud_init.user_data", Path, help="file with user data", panel=SEED, convert=Path.read_text),
    option("cloud_init.gateway", str, help="default gateway of a VM with --address", panel=SEED),
    option("cloud_init.nameservers", list[str], "--nameserver", help="name server; can be repeated", panel=SEED),
)  # fmt: skip
CREATE_OPTIONS = (
    option("image", str, help="image of its disk, see: novacron image list; without one, the disk of --disk is empty"),
    option("flavor", str, help="size of the VM, see: novacron flavor list", autocompletion=names_of("flavors")),
    option("template", str, help="template for all other settings, see: novacron template list",
           autocompletion=names_of("templates")),
    option("node", str, help="node to run on; by default chosen by the platform", panel=PLACE),
    *(_create_option(entry) for entry in VM_OPTIONS if entry.field != "disk_mib"),
    *metadata.OPTIONS,
    option("disks", list[str], "--disk", panel=SIZE, convert=disk_options,
           help="disk of a size such as 20G, or size=20G[,bus=BUS][,image=IMAGE][,boot=PLACE][,pool=POOL];"
           " repeat it for further disks, which are volumes"),
    option("cdroms", list[str], "--cd", panel=BOOT, convert=drives,
           help="CD-ROM drive with an ISO in it, or none for an empty one; can be repeated"),
    option("placement.anti_affinity_scope", AntiAffinityScope, default=AntiAffinityScope.NODE, panel=PLACE,
           help=SCOPE_HELP),
    *PLACEMENT_OPTIONS,
    option("nics", list[str], "--network", panel=NET, convert=interfaces,
           help="network to attach, as NETWORK[=ADDRESS][,mac=MAC][,address6=ADDRESS]; can be repeated; none: no"
                " network, also not the project's default one"),
    option("security_groups", list[str], "--security-group", panel=NET,
           help="security group of its network interfaces; can be repeated"),
    *SEED_OPTIONS,
)  # fmt: skip
NOT_IN_TEMPLATES = ("power", "address", "mac", "boot_once", "smbios_serial", "smbios_asset_tag")
TEMPLATE_OPTIONS = (
    option("image", str, help="see: novacron image list"),
    *(_create_option(entry, defaults=False) for entry in VM_OPTIONS if entry.field not in NOT_IN_TEMPLATES),
    option("placement.anti_affinity_scope", AntiAffinityScope, panel=PLACE, help=SCOPE_HELP),
    *PLACEMENT_OPTIONS,
    option("nics", list[str], "--network", panel=NET, convert=networks_of_template,
           help="network to attach; can be repeated"),
)  # fmt: skip
CHANGE_OPTIONS = (
    option("macs", list[str], "--mac", panel=NET, convert=chosen_or_new,
           help="MAC address of its interface, or new for a free one, while it is off; repeat it for each interface"),
    option("name", str, help="a new name"),
    *metadata.OPTIONS,
    option("cdroms", list[str], "--cd", panel=BOOT, convert=drives,
           help="CD-ROM drive with an ISO in it, or none for an empty one; replaces the present ones; can be repeated"),
    *(_change_option(entry) for entry in VM_OPTIONS if VM_FIELDS[entry.field].changeable),
    option("security_groups", list[str], "--security-group", panel=NET,
           help="security group of its network interfaces; replaces the present ones; can be repeated"),
    option("placement.anti_affinity_scope", AntiAffinityScope, panel=PLACE, help=SCOPE_HELP),
    *PLACEMENT_OPTIONS,
    *SEED_OPTIONS,
)  # fmt: skip

NewVm = Annotated[Object, CREATE_OPTIONS]
VmChanges = Annotated[Object, CHANGE_OPTIONS]
NoSecurityGroup = Annotated[
    bool, typer.Option("--no-security-group", help="remove all security groups", rich_help_panel=NET)
]
