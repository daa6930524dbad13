"""``novacron vm create`` and ``novacron vm placement``: new VMs, and where they go."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from novacron.cli import output
from novacron.cli.output import Format, Object, Output
from novacron.cli.vms import (
    HA_PRIORITY_HELP,
    MEMORY_MAX_HELP,
    ORDER_HELP,
    RESTART_HELP,
    VCPUS_MAX_HELP,
    VERDICTS,
    Restart,
    SecurityGroup,
    Timeout,
    Vm,
    Wait,
    WaitFor,
    finish,
)
from novacron.client import Client

DEVICE_HELP = "a PCI device of its node, such as 8086:10fb, that nodes give to VMs; can be repeated"
NETWORK_HELP = "an interface in this network, or with this address in it: NETWORK=ADDRESS; can be repeated"
WAIT_FOR_HELP = "wait until it runs, or its guest agent answers; also --wait=agent"
RequireLabel = Annotated[
    list[str] | None, typer.Option(help="KEY=VALUE that its node must have as a label; can be repeated")
]
Tolerate = Annotated[list[str] | None, typer.Option(help="taint that does not keep it away; can be repeated")]


class Firmware(StrEnum):
    """What a guest boots with."""

    BIOS = "bios"
    UEFI = "uefi"
    UEFI_SECURE = "uefi-secure"


class Scope(StrEnum):
    """Within what VMs of an anti-affinity group are not together."""

    NODE = "node"
    ZONE = "zone"
    SITE = "site"


class CpuKind(StrEnum):
    BASELINE = "baseline"
    HOST = "host"


class Create(TyperCommand):
    """Takes ``--wait=agent`` too: ``--wait`` alone is a flag, which Typer gives no value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [arg.replace("--wait=", "--wait-for=", 1) for arg in args])


def create(
    name: Annotated[str, typer.Argument(help="lower-case letters, digits and hyphens", show_default=False)],
    image: Annotated[str, typer.Option(help="see: novacron image list", show_default=False)],
    vcpus: Annotated[int, typer.Option(help="virtual CPUs")] = 1,
    memory: Annotated[int, typer.Option(help="memory in MiB")] = 256,
    vcpus_max: Annotated[int | None, typer.Option(help=VCPUS_MAX_HELP)] = None,
    memory_max: Annotated[int | None, typer.Option(help=MEMORY_MAX_HELP)] = None,
    node: Annotated[str | None, typer.Option(help="where; chosen if not given")] = None,
    address: Annotated[str | None, typer.Option(help="the guest's IPv4 address, for example 10.77.0.10/24")] = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="start it at once")] = True,
    restart: Annotated[Restart, typer.Option(help=RESTART_HELP)] = Restart.ON_FAILURE,
    start_order: Annotated[int, typer.Option(help=ORDER_HELP)] = 500,
    protect: Annotated[bool, typer.Option("--protect", help="refuse to delete it")] = False,
    disk: Annotated[int | None, typer.Option(help="size of its disk in MiB; its image's if not given")] = None,
    disk_iops: Annotated[int | None, typer.Option(help="reads and writes a second at most, of its disk")] = None,
    disk_throughput: Annotated[int | None, typer.Option(help="bytes a second at most, of its disk")] = None,
    firmware: Annotated[Firmware, typer.Option(help="what it boots with")] = Firmware.BIOS,
    tpm: Annotated[bool, typer.Option("--tpm", help="give it a TPM 2.0")] = False,
    display: Annotated[bool, typer.Option("--display/--no-display", help="give it a VGA display")] = True,
    require_label: RequireLabel = None,
    tolerate: Tolerate = None,
    affinity: Annotated[str | None, typer.Option(help="group whose VMs are on one node")] = None,
    anti_affinity: Annotated[str | None, typer.Option(help="group whose VMs are never together")] = None,
    anti_affinity_scope: Annotated[Scope, typer.Option(help="within what they are not")] = Scope.NODE,
    spread: Annotated[str | None, typer.Option(help="group whose VMs are spread over sites, zones and nodes")] = None,
    ha: Annotated[bool, typer.Option("--ha", help="start it elsewhere when its node fails")] = False,
    ha_priority: Annotated[int, typer.Option(help=HA_PRIORITY_HELP)] = 500,
    own_disk: Annotated[bool, typer.Option("--disk-of-image/--no-disk", help="a disk made of its image")] = True,
    cpu: Annotated[
        CpuKind, typer.Option(help="a processor that every node has, or all of its own node's")
    ] = CpuKind.BASELINE,
    cpu_flag: Annotated[
        list[str] | None, typer.Option(help="what it has besides, such as avx2; can be repeated")
    ] = None,
    device: Annotated[list[str] | None, typer.Option(help=DEVICE_HELP)] = None,
    network: Annotated[list[str] | None, typer.Option(help=NETWORK_HELP)] = None,
    security_group: SecurityGroup = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say where it would be placed, and why")] = False,
    hostname: Annotated[str | None, typer.Option(help="for cloud-init; the VM's name if not given")] = None,
    ssh_key: Annotated[
        list[Path] | None, typer.Option(help="file with public SSH keys, for cloud-init; can be repeated")
    ] = None,
    user_data: Annotated[Path | None, typer.Option(help="file with user data for cloud-init")] = None,
    gateway: Annotated[str | None, typer.Option(help="for cloud-init: router of a VM with --address")] = None,
    nameserver: Annotated[list[str] | None, typer.Option(help="for cloud-init; can be repeated")] = None,
    wait: Wait = False,
    wait_for: Annotated[WaitFor | None, typer.Option(help=WAIT_FOR_HELP)] = None,
    timeout: Timeout = 120,
    output_: Output = Format.TABLE,
) -> None:
    """Create a VM and start it."""
    with output.errors():
        client = Client()
        seed = {
            "hostname": hostname, "gateway": gateway, "nameservers": nameserver or None,
            "ssh_keys": [line for path in ssh_key or () for line in _lines(path)] or None,
            "user_data": None if user_data is None else user_data.read_text(),
        }  # fmt: skip
        seed = {field: value for field, value in seed.items() if value is not None}
        fields = {
            "name": name, "image": image, "vcpus": vcpus, "memory_mib": memory, "vcpus_max": vcpus_max,
            "memory_max_mib": memory_max, "node": node, "address": address, "protected": protect,
            "power": "running" if start else "stopped", "restart": restart.value, "start_order": start_order,
            "disk_mib": disk, "disk_iops": disk_iops, "disk_bytes_per_s": disk_throughput, "tpm": tpm,
            "firmware": firmware.value, "display": "vga" if display else "none", "cloud_init": seed or None,
            "ha": ha, "ha_priority": ha_priority, "own_disk": own_disk,
            "cpu": cpu.value, "cpu_flags": cpu_flag or [],
            "devices": device or [],
            "nics": _nics(network or (), security_group or ()),
            "placement": _placement(require_label, tolerate, affinity, anti_affinity, anti_affinity_scope, spread),
        }  # fmt: skip
        if dry_run:
            output.rows(client.foresee_placement(**fields), VERDICTS, output_)
            return
        vm = client.create_vm(**fields)
        wait = wait or wait_for is not None
        finish(client, vm, ("running",) if start else ("stopped",), wait, timeout, output_, wait_for)


def placement(vm: Vm, output_: Output = Format.TABLE) -> None:
    """Say of each node whether a VM could be moved there now, and what speaks for it."""
    with output.errors():
        output.rows(Client().placement(vm), VERDICTS, output_)


def _nics(networks: Sequence[str], groups: Sequence[str]) -> list[Object]:
    """Return the interfaces that ``NETWORK`` and ``NETWORK=ADDRESS`` ask for."""
    found = []
    for text in networks:
        name, _, address = text.partition("=")
        found.append({"network": name, "address": address or None, "groups": list(groups)})
    return found


def _placement(
    labels: list[str] | None, tolerate: list[str] | None, affinity: str | None, anti_affinity: str | None,
    scope: Scope, spread: str | None,
) -> Object:  # fmt: skip
    return {
        "labels": output.parse_labels(labels or ()), "tolerations": tolerate or [], "affinity": affinity,
        "anti_affinity": anti_affinity, "anti_affinity_scope": scope.value, "spread": spread,
    }  # fmt: skip


def _lines(path: Path) -> list[str]:
    """Return the lines of a file that say something."""
    return [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
