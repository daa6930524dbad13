"""How a VM's QEMU is started: its configuration as a command line."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import msgspec

from novacron.model.node import AcceleratorKind
from novacron.qemu.probe import CPU_MODELS

DEFAULT_MACHINE = "pc"
DISK = "disk0"
"""The disk's name as a node of QEMU's block layer."""
NAMESPACE = uuid.UUID("5f0ac0de-0000-4000-8000-6e6f7661766d")


class Nic(msgspec.Struct, frozen=True):
    """A network interface: on a tap, or in QEMU's user mode when ``tap`` is None."""

    mac: str
    tap: str | None
    mtu: int | None = None


class Config(msgspec.Struct, frozen=True):
    """All that QEMU needs to run one VM."""

    id: str
    directory: Path
    vcpus: int
    memory_mib: int
    machine: str
    accelerator: AcceleratorKind
    kernel: Path
    initrd: Path
    cmdline: str
    nic: Nic
    disk: Path | None = None
    """The VM's own layer, qcow2, over the disk of its image."""
    binary: str = "qemu-system-x86_64"


def monitor_path(directory: Path) -> Path:
    return directory / "qmp.sock"


def console_path(directory: Path) -> Path:
    return directory / "console.sock"


def console_log_path(directory: Path) -> Path:
    return directory / "console.log"


def pid_path(directory: Path) -> Path:
    return directory / "qemu.pid"


def quoted(value: object) -> str:
    """Return a value for a QEMU option list, in which a comma is written twice."""
    return str(value).replace(",", ",,")


def command(config: Config, *, incoming: bool) -> list[str]:
    """Return QEMU's arguments. With ``incoming`` it waits for a migration and stays paused after it."""
    directory = config.directory
    netdev = "user,id=net0,restrict=on"
    if config.nic.tap is not None:
        netdev = f"tap,id=net0,ifname={quoted(config.nic.tap)},script=no,downscript=no"
    nic = f"virtio-net-pci,netdev=net0,mac={config.nic.mac},romfile="
    if config.nic.mtu is not None:
        nic += f",host_mtu={config.nic.mtu}"
    disk = []
    if config.disk is not None:
        file = {"driver": "file", "filename": str(config.disk)}
        layer = {"driver": "qcow2", "node-name": DISK, "discard": "unmap", "detect-zeroes": "unmap", "file": file}
        disk = ["-blockdev", json.dumps(layer), "-device", f"virtio-blk-pci,drive={DISK},id={DISK}-device"]
    arguments = [
        config.binary,
        *("-name", f"guest={quoted(config.id)}"),
        *("-uuid", str(uuid.uuid5(NAMESPACE, config.id))),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-shutdown"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-machine", config.machine),
        *("-accel", config.accelerator.value),
        *("-cpu", CPU_MODELS[config.accelerator]),
        *("-smp", str(config.vcpus)),
        *("-m", f"{config.memory_mib}M"),
        *("-pidfile", str(pid_path(directory))),
        *("-qmp", f"unix:{quoted(monitor_path(directory))},server=on,wait=off"),
        *(
            "-chardev",
            f"socket,id=serial0,path={quoted(console_path(directory))},server=on,wait=off,"
            f"logfile={quoted(console_log_path(directory))},logappend=on",
        ),
        *("-serial", "chardev:serial0"),
        *("-netdev", netdev),
        *("-device", nic),
        *disk,
        *("-kernel", str(config.kernel)),
        *("-initrd", str(config.initrd)),
        *("-append", config.cmdline),
    ]
    return [*arguments, "-S", "-incoming", "defer"] if incoming else arguments
