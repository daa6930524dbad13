"""What a worker needs of a hypervisor. ``vm/machine.py`` fulfils it with QEMU; a simulation can, too."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from novacron.agent.actions import Doing
from novacron.agent.vm.console_log import ConsoleLog
from novacron.agent.vm.directory import VmDirectory
from novacron.agent.vm.interfaces import Interfaces
from novacron.agent.vm.launch import StartRequest
from novacron.model.guest_hardware import GuestHardware
from novacron.model.node import AcceleratorKind
from novacron.model.vm import VmSpec
from novacron.model.waiting import WaitCode
from novacron.qemu.guest import GuestAgent
from novacron.qemu.monitor import Monitor

OnEvent = Callable[[str, dict[str, Any]], None]
"""Called in the event loop with the name and the data of a QMP event, and with ``EXIT`` when the process has ended."""


class MachineFailed(Exception):
    """A VM could not be started: says what QEMU or the kernel said."""


class AnotherQemu(MachineFailed):
    """A QEMU that this node may not end runs the VM on its host."""

    code = WaitCode.ANOTHER_QEMU


class VirtualMachine(Protocol):
    """One VM on this host: its process, if there is one, and its files. It decides nothing by itself."""

    id: str
    home: VmDirectory
    directory: Path
    pid: int | None
    """None: it does not run."""
    kept: bool
    """It ends with this node's lease."""
    hardware: GuestHardware | None
    """What the guest has; None: it does not run."""
    monitor: Monitor | None
    """For what only QEMU can do (disks, snapshots, the memory's transport); None: never connected, or simulated."""
    migration_status: str
    """The latest ``MIGRATION`` event's."""
    console_log: ConsoleLog
    guest: GuestAgent
    guest_listens: bool
    interfaces: Interfaces
    copying: asyncio.Lock
    """Held while its disk is copied or shared: by one at a time, and always before the worker's own lock."""
    stood_still_s: float
    """For how long the guest last did."""

    # the process

    async def adopt(self) -> bool:
        """Take over the process that an earlier agent left; say whether there is one. Raises MonitorFailed."""

    async def start(self, request: StartRequest) -> str:
        """Start it, the guest running unless it is incoming; return its machine type. Raises MachineFailed."""

    async def status(self) -> str:
        """Return QEMU's run state, or ``absent``. Raises MonitorFailed when it hangs."""

    async def execute(self, name: str, arguments: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - differs by command
        """Run a QMP command: ``cont``, ``stop``, ``system_reset``, ``system_powerdown`` ... Raises MonitorFailed."""

    async def kill(self) -> None:
        """End the process at once; no ``EXIT`` event follows."""

    async def detach(self) -> None:
        """Let go of the process without touching it."""

    def last_words(self) -> str:
        """Return the end of what the process said."""

    def check_peer(self, connection: socket.socket) -> None:
        """Raise OSError unless a Unix socket that was connected to is this process's."""

    # what is here of the VM

    def exists(self) -> bool:
        """Say whether anything of the VM is here."""

    def has_disk(self) -> bool:
        """Say whether its own layer of its disk is here."""

    async def leave(self) -> None:
        """The VM runs elsewhere now: cut its network off. The process stays."""

    async def destroy(self) -> None:
        """End the process and remove every trace of the VM from this host. Raises OSError."""

    # what it is given while it runs

    async def grow_hardware(self, spec: VmSpec, kind: AcceleratorKind, doing: Doing) -> bool:
        """Give it the processors and the memory that it should have; say whether there were any. Raises
        MonitorFailed."""

    async def grow(self, size_bytes: int, doing: Doing) -> None:
        """Make its disk this large, if it is smaller. Raises MonitorFailed."""

    def bound_io(self, bytes_per_s: int | None, iops: int | None) -> None:
        """Bound what it reads and writes in a second."""

    # what is asked about it

    def charged(self) -> list[tuple[str, float]]:
        """Return what this host counts for it, by metric."""

    async def screenshot(self) -> bytes:
        """Return what its display shows, as a PNG file. Raises MonitorFailed, OSError."""


class Hypervisor(Protocol):
    """Where a node's VMs run."""

    def machine(self, vm: str, on_event: OnEvent) -> VirtualMachine:
        """Return a VM, which may or may not run already; nothing is done yet."""
