"""Flavors and templates: what new VMs begin with, so that not every field has to be named."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from novacron.model import limits
from novacron.model.constraints import Labels, Placement
from novacron.model.cpu import CpuKind
from novacron.model.devices import (
    BootOrder,
    CpuPolicy,
    DiskBus,
    HugePages,
    KernelArguments,
    NicModel,
    NumaNodes,
    Os,
    SerialPorts,
    SmbiosText,
    Usb,
)
from novacron.model.hardware import DEVICES_PER_VM_MAX, PciId
from novacron.model.metadata import Metadata
from novacron.model.names import Name
from novacron.model.network import NetworkName, SecurityGroups
from novacron.model.vm import (
    BytesPerS,
    Cdroms,
    ChosenMachine,
    CpuFlags,
    DiskMib,
    Display,
    Firmware,
    HaPriority,
    Iops,
    MemoryMib,
    Restart,
    StartDelay,
    StartOrder,
    Vcpus,
    VmSpec,
)


class FlavorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A size of VMs."""

    vcpus: Vcpus
    memory_mib: MemoryMib
    disk_mib: DiskMib | None = None
    """None: that of the image's disk."""
    labels: Labels = {}
    """The nodes of such VMs must have all of these."""

    def fields(self) -> dict[str, Any]:
        """Return the fields of a VM that it sets."""
        fields: dict[str, Any] = {"vcpus": self.vcpus, "memory_mib": self.memory_mib}
        if self.disk_mib is not None:
            fields["disk_mib"] = self.disk_mib
        if self.labels:
            fields["placement"] = {"labels": dict(self.labels)}
        return fields


class TemplateNic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network interface, without the addresses that each VM has of its own."""

    network: NetworkName
    groups: SecurityGroups = ()


class TemplateSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fields of a VM, without those unique to one VM. Fields that are left out have their usual defaults."""

    image: Name | UnsetType = UNSET
    vcpus: Vcpus | UnsetType = UNSET
    memory_mib: MemoryMib | UnsetType = UNSET
    vcpus_max: Vcpus | UnsetType | None = UNSET
    memory_max_mib: MemoryMib | UnsetType | None = UNSET
    restart: Restart | UnsetType = UNSET
    start_order: StartOrder | UnsetType = UNSET
    start_delay_s: StartDelay | UnsetType = UNSET
    protected: bool | UnsetType = UNSET
    display: Display | UnsetType = UNSET
    firmware: Firmware | UnsetType = UNSET
    tpm: bool | UnsetType = UNSET
    disk_mib: DiskMib | UnsetType | None = UNSET
    disk_iops: Iops | UnsetType | None = UNSET
    disk_bytes_per_s: BytesPerS | UnsetType | None = UNSET
    placement: Placement | UnsetType = UNSET
    ha: bool | UnsetType = UNSET
    ha_priority: HaPriority | UnsetType = UNSET
    own_disk: bool | UnsetType = UNSET
    cpu: CpuKind | UnsetType = UNSET
    cpu_flags: CpuFlags | UnsetType = UNSET
    machine: ChosenMachine | UnsetType | None = UNSET
    devices: Annotated[tuple[PciId, ...], Meta(max_length=DEVICES_PER_VM_MAX)] | UnsetType = UNSET
    nics: Annotated[tuple[TemplateNic, ...], Meta(max_length=limits.NICS_PER_VM_MAX)] | UnsetType = UNSET
    os: Os | UnsetType = UNSET
    disk_bus: DiskBus | UnsetType = UNSET
    disk_boot_order: BootOrder | UnsetType | None = UNSET
    nic_model: NicModel | UnsetType = UNSET
    network_boot_order: BootOrder | UnsetType | None = UNSET
    cdroms: Cdroms | UnsetType = UNSET
    kernel: Name | UnsetType | None = UNSET
    initrd: Name | UnsetType | None = UNSET
    kernel_arguments: KernelArguments | UnsetType = UNSET
    smbios_manufacturer: SmbiosText | UnsetType = UNSET
    serial_ports: SerialPorts | UnsetType = UNSET
    usb: Usb | UnsetType = UNSET
    cpu_policy: CpuPolicy | UnsetType = UNSET
    hugepages: HugePages | UnsetType = UNSET
    numa_nodes: NumaNodes | UnsetType = UNSET

    def fields(self) -> dict[str, Any]:
        """Return the fields of a VM that it sets."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields


class Flavor(Metadata, frozen=True):
    """A size that VMs are created in."""

    name: str
    spec: FlavorSpec
    project: str | None
    """None: all projects may use it."""
    revision: int
    created_at: datetime


class Template(Metadata, frozen=True):
    """What VMs are created like."""

    name: str
    spec: TemplateSpec
    project: str | None
    """None: all projects may use it."""
    revision: int
    created_at: datetime


def template_of(spec: VmSpec) -> TemplateSpec:
    """Return a template for VMs like one that exists."""
    fields = {
        name: value
        for name, value in msgspec.to_builtins(spec).items()
        if name in TemplateSpec.__struct_fields__ and name != "nics"
    }
    nics = [{"network": nic.network, "groups": list(nic.groups)} for nic in spec.nics]
    return msgspec.convert({**fields, "nics": nics}, TemplateSpec)


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a new VM: those of later layers count. Of ``placement`` each field is one of its own, and
    labels add up."""
    fields: dict[str, Any] = {}
    for layer in layers:
        placement = _placement(fields.get("placement"), layer.get("placement"))
        fields |= layer
        if placement is not None:
            fields["placement"] = placement
    return fields


def _placement(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if before is None or after is None:
        given = after if before is None else before
        return None if given is None else dict(given)
    return {**before, **after, "labels": {**before.get("labels", {}), **after.get("labels", {})}}
