"""How a VM's QEMU is started: its configuration as a command line."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path

import msgspec

from novacron.model import limits
from novacron.model.cpu import CpuModel
from novacron.model.devices import DiskBus, NicModel, UsbDevice
from novacron.model.limits import MEMORY_SLOTS
from novacron.model.node import AcceleratorKind
from novacron.model.plugged import DeviceSlot, has_pcie
from novacron.qemu import boot, firmware, guest_memory, nics, peripherals, vfio
from novacron.qemu.abilities import argument
from novacron.qemu.boot import BootPlan
from novacron.qemu.guest_memory import MemoryLayout
from novacron.qemu.nics import QemuNic
from novacron.qemu.usage import BALLOON

DISK = "disk0"
"""The disk's name, and that of the node of QEMU's block layer with which it starts."""
RESTORED, RECONNECT_S = "restored0", 6
"""The node of a backup's disk, below the VM's own layer while that is restored from it; and for how long QEMU waits for
who serves it: it answers nobody meanwhile."""
DISK_OPTIONS = {"discard": "unmap", "detect-zeroes": "unmap"}
SHARED_FDSET, VOLUME_FDSET = 100, 200
SCSI, SATA = "scsi0", "sata0"
"""The controller of volumes: it lets go of a disk whatever the guest does, and needs no slot for each."""
FDSET, SEED_FDSET, FIRMWARE_FDSET, CONSOLE_LOG_FDSET, PICTURE_FDSET, CD_FDSET = 1, 2, 3, 4, 5, 10
SERIAL_LENGTH_MAX = 20
"""What ATA and virtio disks can hold; an id of a volume is that long."""
SATA_CD_PORT = 4
"""The first port for a CD-ROM drive of a machine without IDE; disks have those below."""
HYPERV = ",hv-relaxed=on,hv-vapic=on,hv-spinlocks=0x1fff,hv-time=on"
"""What Windows knows of hypervisors, which only KVM can give (QEMU's docs/system/i386/hyperv.rst)."""
VIDEO, VIDEO_MIB = "video0", 8
GUEST_PORT = "org.qemu.guest_agent.0"
NAMESPACE = uuid.UUID("5f0ac0de-0000-4000-8000-6e6f7661766d")


class QemuKey(msgspec.Struct, frozen=True):
    """A key that encrypts disks, in a file that is open."""

    id: str
    descriptor: int


class QemuVolume(msgspec.Struct, frozen=True):
    """A disk of a VM's that outlives it: a raw file, open."""

    id: str
    lun: int
    descriptor: int
    read_only: bool = False
    boot_order: int | None = None
    key: str = ""
    """Id of the key that it is encrypted with; empty: it is not."""
    bus: DiskBus = DiskBus.SCSI


class QemuCd(msgspec.Struct, frozen=True):
    """A CD-ROM drive, and what is in it."""

    number: int
    node: str | None = None
    """Name of the medium as a node of QEMU's block layer; None: the drive is empty."""
    descriptor: int | None = None
    """The file of the medium, open."""
    key: str = ""
    """Id of the key that it is encrypted with; empty: it is not."""


class QemuConfig(msgspec.Struct, frozen=True):
    """All that QEMU needs to run one VM.

    Files are named as QEMU sees them, and what it inherits is named by number: listening sockets, and the disk of the
    image. Without numbers it opens by name, and makes its sockets in ``directory``, itself.
    """

    id: str
    directory: Path
    vcpus: int
    memory_mib: int
    machine: str
    accelerator: AcceleratorKind
    kernel: Path | None
    initrd: Path | None
    cmdline: str
    nics: tuple[QemuNic, ...]
    disk: Path | None = None
    """The VM's own layer, qcow2, over the disk of its image."""
    binary: str = "qemu-system-x86_64"
    monitor: int | None = None
    console: int | None = None
    console_log: int | None = None
    """A file to which what the guest prints is appended; None: ``console.log`` in ``directory``."""
    guest: int | None = None
    display: bool = False
    firmware: int | None = None
    """The code of UEFI; its variables are in ``nvram.fd``. None: a BIOS."""
    secure: bool = False
    """Only UEFI itself may change its variables."""
    tpm: bool = False
    seed: int | None = None
    """A CD for the guest's first boot."""
    below: int | None = None
    """The raw disk under ``disk``, regardless of the file's own header."""
    below_key: str = ""
    """Id of the key that it is encrypted with; empty: it is not."""
    shared: tuple[int, ...] = ()
    """The layers between the two, which other VMs may have too, from the lowest up."""
    volumes: tuple[QemuVolume, ...] = ()
    vcpus_max: int | None = None
    memory_max_mib: int | None = None
    cpu: CpuModel | None = None
    """None: all that there is."""
    devices: tuple[str, ...] = ()
    """Addresses of the host's PCI devices that it has."""
    balloon: bool = False
    keys: tuple[QemuKey, ...] = ()
    disk_key: str = ""
    """Id of the key that the VM's own layer, and those that it shares, are encrypted with; empty: they are not."""
    nvram_key: str = ""
    """Id of the key that the variables of UEFI are encrypted with; empty: they are not."""
    disk_bus: DiskBus = DiskBus.VIRTIO
    boot: BootPlan = BootPlan(limits.DISK_BOOT_ORDER)
    cds: tuple[QemuCd, ...] = ()
    nic_model: NicModel = NicModel.VIRTIO
    nic_ports: int = 0
    """Ports for interfaces that come later, if the machine has PCI Express."""
    slots: tuple[DeviceSlot, ...] = ()
    """Where devices of a guest that comes here are; without any, one after the other."""
    smbios: Mapping[str, str] = {}
    """What the guest reads of its machine: ``manufacturer``, ``serial``, ``asset``; without them, QEMU's own."""
    restored_from: str = ""
    """The socket on which the disk below ``disk`` is offered over NBD, which stands for all others below it; empty: it
    is not."""
    windows: bool = False
    """The guest is Windows: its clock shows local time, and it knows hypervisors."""
    serials: tuple[int, ...] = ()
    """Sockets that listen, one for each serial port beyond the console's."""
    usb: tuple[UsbDevice, ...] = ()
    memory: MemoryLayout = MemoryLayout()

    @property
    def has_ide(self) -> bool:
        """Say whether the machine has IDE; others have SATA on board."""
        return not has_pcie(self.machine)

    @property
    def own_sata(self) -> bool:
        return self.disk is not None and self.disk_bus is DiskBus.SATA


def monitor_path(directory: Path) -> Path:
    return directory / "qmp.sock"


def console_path(directory: Path) -> Path:
    return directory / "console.sock"


def display_path(directory: Path) -> Path:
    """Where QEMU itself makes the socket of its VNC server."""
    return directory / "run" / "display.sock"


def guest_path(directory: Path) -> Path:
    return directory / "guest.sock"


def console_log_path(directory: Path) -> Path:
    return directory / "console.log"


def node_behind(number: int) -> str:
    """Return the name of the node of a layer that was put over others while the guest ran."""
    return f"{DISK}-{number}"


NAMED_THREADS = "debug-threads=on"
"""QEMU names its threads, as in ``top -H``: those of vCPUs are ``CPU 0/KVM`` or ``CPU 0/TCG``, and so on."""


def name_argument(id: str) -> str:
    """Return the argument by which a VM's QEMU is found again, by agents of other versions too: it never changes."""
    return f"guest={quoted(id)}"


def uuid_argument(id: str) -> str:
    """Return a VM's UUID, which follows from its id."""
    return str(uuid.uuid5(NAMESPACE, id))


def quoted(value: object) -> str:
    """Return a value for a QEMU option list, in which a comma is written twice."""
    return str(value).replace(",", ",,")


def _server(descriptor: int | None, path: Path) -> str:
    where = f"path={quoted(path)}" if descriptor is None else f"fd={descriptor}"
    return f"{where},server=on,wait=off"


def _console(config: QemuConfig) -> list[str]:
    """Return the serial line, and where what the guest prints on it is logged."""
    arguments, log = [], str(console_log_path(config.directory))
    if config.console_log is not None:
        arguments, log = ["-add-fd", f"set={CONSOLE_LOG_FDSET},fd={config.console_log}"], fdset_path(CONSOLE_LOG_FDSET)
    where = _server(config.console, console_path(config.directory))
    chardev = f"socket,id=serial0,{where},logfile={quoted(log)},logappend=on"
    return [*arguments, "-chardev", chardev, "-serial", "chardev:serial0"]


def _firmware_of(config: QemuConfig) -> str:
    if config.firmware is None:
        return ""
    return ",pflash0=code0,pflash1=vars0" + (",smm=on" if config.secure else "")


def _firmware(config: QemuConfig) -> list[str]:
    arguments = []
    if config.firmware is not None:
        code = _read_only(FIRMWARE_FDSET)
        variables = {"driver": "file", "filename": str(config.directory / firmware.NVRAM)}
        arguments += [
            *("-add-fd", f"set={FIRMWARE_FDSET},fd={config.firmware}"),
            *("-blockdev", json.dumps({"driver": "raw", "node-name": "code0", "read-only": True, "file": code})),
            *("-blockdev", json.dumps({**_format(config.nvram_key), "node-name": "vars0", "file": variables})),
        ]
    if config.secure:
        arguments += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    if config.tpm:
        arguments += [
            *("-chardev", f"socket,id=tpm0,path={quoted(config.directory / firmware.TPM_SOCKET)}"),
            *("-tpmdev", "emulator,id=tpm0,chardev=tpm0", "-device", "tpm-crb,tpmdev=tpm0"),
        ]
    return arguments


def _smbios(said: Mapping[str, str]) -> list[str]:
    """Return what is said of the system (type 1) and of its chassis (type 3)."""
    types = {1: ("manufacturer", "serial"), 3: ("manufacturer", "serial", "asset")}
    return [
        argument
        for number, fields in types.items()
        if (given := [f"{field}={quoted(said[field])}" for field in fields if said.get(field)])
        for argument in ("-smbios", ",".join((f"type={number}", *given)))
    ]


def _enlightenments(config: QemuConfig) -> str:
    return HYPERV if config.windows and config.accelerator is AcceleratorKind.KVM else ""


def _processors(config: QemuConfig) -> str:
    if config.vcpus_max:
        return f"{config.vcpus},maxcpus={config.vcpus_max}"
    return f"{config.vcpus}{guest_memory.topology(config.memory, config.vcpus)}"


def _memory(config: QemuConfig) -> str:
    if config.memory_max_mib is None:
        return f"{config.memory_mib}M"
    return f"size={config.memory_mib}M,slots={MEMORY_SLOTS},maxmem={config.memory_max_mib}M"


def _disk(config: QemuConfig) -> list[str]:
    """Return the disk: the VM's own layer, over those that it shares, over its image's disk."""
    if config.disk is None:
        return []
    arguments: list[str] = []
    encryption = encrypted(config.disk_key)
    layer: dict[str, object] = {"driver": "qcow2", "node-name": DISK, **DISK_OPTIONS, **encryption}
    layer["file"] = {"driver": "file", "filename": str(config.disk)}
    if config.restored_from:
        layer["backing"] = _restored(config.restored_from)
    elif config.below is not None:
        arguments += ["-add-fd", f"set={FDSET},fd={config.below}"]
        backing: dict[str, object] = {**_format(config.below_key), "read-only": True, "file": _read_only(FDSET)}
        for number, descriptor in enumerate(config.shared, SHARED_FDSET):
            arguments += ["-add-fd", f"set={number},fd={descriptor}"]
            file = _read_only(number)
            backing = {"driver": "qcow2", "read-only": True, "file": file, "backing": backing, **encryption}
        layer["backing"] = backing
    device = f"{_disk_device(config)},drive={DISK},id={DISK}-device{_bootindex(config, boot.DISK_DEVICE)}"
    if config.restored_from:  # the guest stands still rather than see an error while its backup can't be read
        device += ",rerror=stop,werror=stop"
    return [*_controller(config), *arguments, "-blockdev", json.dumps(layer), "-device", device]


def _restored(socket: str) -> dict[str, object]:
    """Return the disk of a backup, as whoever serves it offers it."""
    server = {"type": "unix", "path": socket}
    nbd = {"driver": "nbd", "server": server, "reconnect-delay": RECONNECT_S, "read-only": True}
    return {"driver": "raw", "node-name": RESTORED, "read-only": True, "file": nbd}


def _disk_device(config: QemuConfig) -> str:
    match config.disk_bus:
        case DiskBus.VIRTIO:
            return "virtio-blk-pci"
        case DiskBus.SCSI:
            return f"scsi-hd,bus={SCSI}.0,channel=0,scsi-id=1,lun=0"
        case DiskBus.SATA:
            return f"ide-hd,bus={SATA}.0" if config.has_ide else "ide-hd,bus=ide.0"
        case DiskBus.IDE:
            return "ide-hd,bus=ide.0,unit=0"


def _controller(config: QemuConfig) -> list[str]:
    """Return the controller of the VM's own disk, where it is neither on board nor behind all others."""
    if config.disk_bus is DiskBus.SCSI:
        return ["-device", f"virtio-scsi-pci,id={SCSI}"]
    return ["-device", f"ich9-ahci,id={SATA}"] if config.own_sata and config.has_ide else []


def _bootindex(config: QemuConfig, device: str) -> str:
    index = config.boot.first().get(device)
    return "" if index is None else f",bootindex={index}"


def cd_fdset(number: int) -> int:
    return CD_FDSET + number


def cd_node(cd: QemuCd) -> dict[str, object]:
    """Return what is in a drive as a node of QEMU's block layer."""
    file = _read_only(cd_fdset(cd.number))
    return {**_format(cd.key), "node-name": cd.node, "read-only": True, "file": file}


def _cds(config: QemuConfig) -> list[str]:
    arguments: list[str] = []
    for cd in config.cds:
        bus = f"ide.1,unit={cd.number}" if config.has_ide else f"ide.{SATA_CD_PORT + cd.number}"
        device = f"ide-cd,id={boot.cd_device(cd.number)},bus={bus}{_bootindex(config, boot.cd_device(cd.number))}"
        if cd.node is not None:
            arguments += ["-add-fd", f"set={cd_fdset(cd.number)},fd={cd.descriptor}"]
            arguments += ["-blockdev", json.dumps(cd_node(cd))]
            device += f",drive={cd.node}"
        arguments += ["-device", device]
    return arguments


def encrypted(key: str) -> dict[str, object]:
    """Return the options of a qcow2 layer's node that is encrypted with this key of QEMU's; empty: with none."""
    return {"encrypt": {"format": "luks", "key-secret": key}} if key else {}


def _format(key: str) -> dict[str, object]:
    """Return how the node of a file is read that is encrypted with this key of QEMU's; empty: as it is."""
    return {"driver": "luks", "key-secret": key} if key else {"driver": "raw"}


def fdset_path(fdset: int) -> str:
    """Return the name under which QEMU opens a file of one of its sets of descriptors."""
    return f"/dev/fdset/{fdset}"


def _read_only(fdset: int) -> dict[str, object]:
    return {"driver": "file", "filename": fdset_path(fdset), "read-only": True}


def fdset_of(volume: QemuVolume | int) -> int:
    """Return the number of QEMU's set of descriptors for the volume at a place."""
    return VOLUME_FDSET + (volume if isinstance(volume, int) else volume.lun)


def volume_node(volume: QemuVolume) -> dict[str, object]:
    """Return a volume as a node of QEMU's block layer, named after it."""
    file = {"driver": "file", "filename": fdset_path(fdset_of(volume)), "read-only": volume.read_only}
    options: dict[str, object] = {} if volume.read_only else dict(DISK_OPTIONS)
    return {**_format(volume.key), "node-name": volume.id, "read-only": volume.read_only, "file": file, **options}


def volume_device(volume: QemuVolume, *, has_ide: bool = True) -> dict[str, object]:
    """Return a volume as a disk on its bus, whose serial is its id, as far as the bus has room for that."""
    device: dict[str, object] = {"driver": "ide-hd", "id": f"{volume.id}-device"}
    match volume.bus:
        case DiskBus.SCSI:
            device |= {"driver": "scsi-hd", "bus": f"{SCSI}.0", "channel": 0, "scsi-id": 0, "lun": volume.lun}
        case DiskBus.VIRTIO:
            device["driver"] = "virtio-blk-pci"
        case DiskBus.SATA:
            device["bus"] = f"{SATA if has_ide else 'ide'}.{1 + volume.lun}"
        case DiskBus.IDE:
            device |= {"bus": "ide.0", "unit": 1 + volume.lun}
    device |= {"drive": volume.id, "serial": volume.id[:SERIAL_LENGTH_MAX]}
    if volume.boot_order is not None:
        device["bootindex"] = boot.volume_index(volume.boot_order, volume.lun)
    return device


def _volumes(config: QemuConfig) -> list[str]:
    has_controller = config.disk is not None and config.disk_bus is DiskBus.SCSI
    arguments = [] if has_controller else ["-device", f"virtio-scsi-pci,id={SCSI}"]
    if not config.own_sata and any(volume.bus is DiskBus.SATA for volume in config.volumes) and config.has_ide:
        arguments += ["-device", f"ich9-ahci,id={SATA}"]
    for volume in config.volumes:
        arguments += ["-add-fd", f"set={fdset_of(volume)},fd={volume.descriptor}"]
        arguments += [
            "-blockdev",
            json.dumps(volume_node(volume)),
            "-device",
            json.dumps(volume_device(volume, has_ide=config.has_ide)),
        ]
    return arguments


def _keys(keys: tuple[QemuKey, ...]) -> list[str]:
    """Return QEMU's secrets: each is read from a file that it inherits, never from an argument."""
    return [part for key in keys for part in ("-object", f"secret,id={key.id},file=/proc/self/fd/{key.descriptor}")]


def _seed(descriptor: int | None) -> list[str]:
    if descriptor is None:
        return []
    cd = {"driver": "raw", "node-name": "seed0", "read-only": True, "file": _read_only(SEED_FDSET)}
    set_ = ["-add-fd", f"set={SEED_FDSET},fd={descriptor}"]
    return [*set_, "-blockdev", json.dumps(cd), "-device", "virtio-blk-pci,drive=seed0,id=seed0-device"]


def _guest(descriptor: int | None) -> list[str]:
    if descriptor is None:
        return []
    return [
        *("-chardev", f"socket,id=guest0,fd={descriptor},server=on,wait=off"),
        *("-device", "virtio-serial-pci,id=ports0,max_ports=2"),
        *("-device", f"virtserialport,bus=ports0.0,nr=1,chardev=guest0,name={GUEST_PORT},id=guest0-device"),
    ]


def _nic(config: QemuConfig, number: int, nic: QemuNic) -> list[str]:
    name = nics.name_of(nic, number, boots=config.boot.network is not None)
    netdev = f"user,id={nics.netdev_of(name)},restrict=on"
    if nic.descriptor is not None:
        netdev = f"tap,id={nics.netdev_of(name)},fd={nic.descriptor}"
    elif nic.tap is not None:
        netdev = f"tap,id={nics.netdev_of(name)},ifname={quoted(nic.tap)},script=no,downscript=no"
    options = nics.device_options(nic, name, config.nic_model, pcie=not config.has_ide)
    device = str(options.pop("driver")) + "".join(f",{option}={value}" for option, value in options.items())
    boots = _bootindex(config, f"{name}{nics.SUFFIX}")
    return ["-netdev", netdev, "-device", device + boots]


def command(config: QemuConfig, *, incoming: bool, paused: bool = False) -> list[str]:
    """Return QEMU's arguments. With ``incoming`` it waits for a migration and stays paused after it; with ``paused``
    the guest does not boot before it is told to."""
    directory = config.directory
    arguments = [
        config.binary,
        *("-name", name_argument(config.id)),
        *("-name", NAMED_THREADS),
        *("-uuid", uuid_argument(config.id)),
        *_smbios(config.smbios),
        *("-nodefaults", "-no-user-config", "-no-shutdown"),
        *("-display", f"vnc=unix:{quoted(display_path(directory))}" if config.display else "none"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-machine", config.machine + _firmware_of(config) + guest_memory.machine_options(config.memory)),
        *("-accel", config.accelerator.value),
        *("-cpu", argument(config.accelerator, config.cpu) + _enlightenments(config)),
        *(("-rtc", "base=localtime,driftfix=slew") if config.windows else ()),
        *("-smp", _processors(config)),
        *("-m", _memory(config)),
        *guest_memory.arguments(config.memory, config.vcpus, config.memory_mib),
        *("-chardev", f"socket,id=monitor0,{_server(config.monitor, monitor_path(directory))}"),
        *("-mon", "chardev=monitor0,mode=control"),
        *_console(config),
        *peripherals.serials(config.serials),
        *nics.ports(config.nic_ports, config.machine),
        *(argument for number, nic in enumerate(config.nics) for argument in _nic(config, number, nic)),
        *_keys(config.keys),
        *_disk(config),
        *_volumes(config),
        *_cds(config),
        *(("-device", f"VGA,id={VIDEO},vgamem_mb={VIDEO_MIB}") if config.display else ()),
        *_firmware(config),
        *_seed(config.seed),
        *_guest(config.guest),
        *vfio.arguments(config.devices),
        *(("-device", f"virtio-balloon-pci,id={BALLOON}") if config.balloon else ()),
        *peripherals.usb(config.usb),
    ]
    if config.kernel is not None:
        arguments += ["-kernel", str(config.kernel), "-append", config.cmdline]
        arguments += [] if config.initrd is None else ["-initrd", str(config.initrd)]
    if incoming or paused:
        arguments.append("-S")
    arguments = nics.in_slots(arguments, config.slots)
    return [*arguments, "-incoming", "defer"] if incoming else arguments
