"""The model's enums and a VM's fields, for programs that can't wait for the model to load.

Made of ``novacron.model`` by script/generate: change that, and run it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class VmField(NamedTuple):
    """A field of ``POST /api/v1/vms``."""

    type: type
    default: object
    changeable: bool
    """``PATCH`` takes it too."""
    clearable: bool
    """... and null, which removes a limit."""
    by_os: bool = False
    """Left out, it depends on the operating system."""


class AntiAffinityScope(StrEnum):
    """What VMs of an anti-affinity group never share: a node, a zone or a site."""

    NODE = "node"
    ZONE = "zone"
    SITE = "site"


class BootDevice(StrEnum):
    """A kind of device from which a VM boots."""

    DISK = "disk"
    CDROM = "cdrom"
    NETWORK = "network"


class CpuPolicy(StrEnum):
    """How a VM's virtual CPUs share the CPUs of its node."""

    SHARED = "shared"
    DEDICATED = "dedicated"


class DiskBus(StrEnum):
    """The controller of a disk."""

    VIRTIO = "virtio"
    SCSI = "scsi"
    SATA = "sata"
    IDE = "ide"


class HugePages(StrEnum):
    """The size of the pages of the node's memory that a guest's memory consists of."""

    NONE = "none"
    SIZE_2M = "2M"
    SIZE_1G = "1G"


class NicModel(StrEnum):
    """The model of a network interface."""

    VIRTIO = "virtio"
    E1000 = "e1000"
    RTL8139 = "rtl8139"


class Os(StrEnum):
    """The guest's operating system. It decides what a new VM has by default, and how its clock runs."""

    OTHER = "other"
    LINUX = "linux"
    DEBIAN12 = "debian12"
    WINDOWS10 = "windows10"
    WINDOWS11 = "windows11"


class AuditOutcome(StrEnum):
    """The outcome of an audited request."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


class CapacityResource(StrEnum):
    """A resource that can fill up or expire."""

    SITE_MEMORY = "site-memory"
    SITE_VCPUS = "site-vcpus"
    SITE_HUGE_2M = "site-huge-2m"
    SITE_HUGE_1G = "site-huge-1g"
    POOL = "pool"
    QUOTA = "quota"
    DATABASE = "database"
    CERTIFICATE = "certificate"


class CpuKind(StrEnum):
    """The processor model that a guest gets at its first start, and keeps."""

    BASELINE = "baseline"
    HOST = "host"


class Display(StrEnum):
    """The guest's graphics card."""

    VGA = "vga"
    NONE = "none"


class DrainPolicy(StrEnum):
    """What to do with a guest that writes to memory faster than the link can send it."""

    THROTTLE = "throttle"
    POST_COPY = "post-copy"
    LEAVE = "leave"


class DrillName(StrEnum):
    """A drill that an installation runs on itself, and that changes nothing that lasts."""

    DATABASE_RESTORE = "database-restore"
    BACKUP_PROOFS = "backup-proofs"
    RUNBOOKS = "runbooks"
    CERTIFICATES = "certificates"


class DrillVerdict(StrEnum):
    """What came of a run."""

    PASSED = "passed"
    FAILED = "failed"


class Encryption(StrEnum):
    """Which traffic of an overlay is encrypted between nodes."""

    BETWEEN_SITES = "between-sites"
    ALWAYS = "always"
    NEVER = "never"


class Ipv6Addresses(StrEnum):
    """How guests learn their IPv6 addresses."""

    DHCP = "dhcp"
    SLAAC = "slaac"


class Firmware(StrEnum):
    """The firmware with which the guest boots."""

    BIOS = "bios"
    UEFI = "uefi"
    UEFI_SECURE = "uefi-secure"


class ImageFormat(StrEnum):
    """The format of an image file."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VDI = "vdi"
    VHD = "vhd"
    VHDX = "vhdx"
    ISO = "iso"
    BOOT_FILE = "boot-file"


class KeyName(StrEnum):
    """A key of the platform."""

    CA = "ca"
    PAGE = "page"
    SEAL = "seal"
    IDEMPOTENCY = "idempotency"
    FACTOR = "factor"


class MigrationPolicy(StrEnum):
    """What to do with a guest that writes to memory faster than the link can send it."""

    THROTTLE = "throttle"
    GO_ON = "go-on"
    POST_COPY = "post-copy"


class Power(StrEnum):
    """The power state that the user wants the VM to have."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class RebalanceBasis(StrEnum):
    """What decides about moves."""

    FORECAST = "forecast"
    AVERAGE = "average"


class RebalanceMode(StrEnum):
    """What is done about an imbalance."""

    OFF = "off"
    ADVISE = "advise"
    AUTO = "auto"


class Restart(StrEnum):
    """When to restart a VM that stopped without a request. Restarts in quick succession wait longer each time."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


VM_FIELDS: dict[str, VmField] = {
    "image": VmField(str, "blank", False, False),
    "vcpus": VmField(int, 1, True, False, True),
    "memory_mib": VmField(int, 256, True, False, True),
    "vcpus_max": VmField(int, None, True, True),
    "memory_max_mib": VmField(int, None, True, True),
    "address": VmField(str, None, False, False),
    "mac": VmField(str, None, False, False),
    "power": VmField(Power, Power.RUNNING, False, False),
    "restart": VmField(Restart, Restart.ON_FAILURE, True, False),
    "start_order": VmField(int, 500, True, False),
    "start_delay_s": VmField(int, 0, True, False),
    "protected": VmField(bool, False, True, False),
    "display": VmField(Display, Display.VGA, True, False),
    "firmware": VmField(Firmware, Firmware.BIOS, True, False, True),
    "tpm": VmField(bool, False, True, False, True),
    "disk_mib": VmField(int, None, True, False),
    "disk_iops": VmField(int, None, True, True),
    "disk_bytes_per_s": VmField(int, None, True, True),
    "ha": VmField(bool, False, True, False),
    "ha_priority": VmField(int, 500, True, False),
    "own_disk": VmField(bool, True, False, False),
    "cpu": VmField(CpuKind, CpuKind.BASELINE, True, False),
    "cpu_flags": VmField(list, (), True, False),
    "machine": VmField(str, None, True, True),
    "devices": VmField(list, (), False, False),
    "os": VmField(Os, Os.OTHER, True, False),
    "disk_bus": VmField(DiskBus, DiskBus.VIRTIO, True, False, True),
    "disk_boot_order": VmField(int, 1, True, True),
    "nic_model": VmField(NicModel, NicModel.VIRTIO, True, False, True),
    "network_boot_order": VmField(int, None, True, True),
    "boot_once": VmField(BootDevice, None, True, True),
    "kernel": VmField(str, None, True, True),
    "initrd": VmField(str, None, True, True),
    "kernel_arguments": VmField(str, "", True, False),
    "smbios_manufacturer": VmField(str, "", True, False),
    "smbios_serial": VmField(str, "", True, False),
    "smbios_asset_tag": VmField(str, "", True, False),
    "serial_ports": VmField(int, 0, True, False),
    "usb": VmField(list, (), True, False),
    "cpu_policy": VmField(CpuPolicy, CpuPolicy.SHARED, True, False),
    "hugepages": VmField(HugePages, HugePages.NONE, True, False),
    "numa_nodes": VmField(int, 1, True, False),
}
"""Those with a default and of a simple type."""
