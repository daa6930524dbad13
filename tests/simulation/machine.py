"""A simulated hypervisor: a QEMU that outlives its agent, and the agent's handle on it.

Where a QEMU runs is a real directory, which it holds open: it may be moved or removed meanwhile. Agents find QEMUs as
the product does, by what they are.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from novacron.agent.actions import Doing
from novacron.agent.vm.console_log import ConsoleLog
from novacron.agent.vm.directory import DISK_LAYER, VmDirectory
from novacron.agent.vm.hypervisor import MachineFailed, OnEvent, VirtualMachine
from novacron.agent.vm.interfaces import Interfaces
from novacron.agent.vm.launch import StartRequest
from novacron.agent.vm.leftovers import without_agent
from novacron.model.guest_hardware import GuestHardware
from novacron.model.node import AcceleratorKind
from novacron.model.vm import VmSpec
from novacron.qemu.monitor import MonitorFailed
from novacron.qemu.running import REMOVED, RunningQemu, choose

if TYPE_CHECKING:
    from tests.simulation.host import AgentProcess
    from tests.simulation.transport import Channel

EXECUTES = frozenset({"running", "finish-migrate"})


class SimulatedQemu:
    """One process on one host. ``memory`` says what its guest did last; it is compared wherever the guest goes on."""

    def __init__(self, machine: SimulatedMachine, *, incoming: bool, kept: bool) -> None:
        self.host, self.vm, self.kept = machine.agent.host, machine.id, kept
        self.pid = next(self.host.world.pids)
        settings = machine.agent.services.settings
        self.lease_path = settings.lease_path
        self._marks = settings.owner, str(settings.state_dir.resolve())
        self._directory = os.open(machine.directory, os.O_PATH | os.O_DIRECTORY)
        self.run_state = "inmigrate" if incoming else "prelaunch"
        self.memory = 0
        self.on_event: OnEvent | None = None
        self.outgoing: Channel | None = None
        """What it migrates through, until that has ended."""

    @property
    def alive(self) -> bool:
        return self.pid in self.host.qemus

    def describe(self) -> RunningQemu:
        """Return what /proc says of the process."""
        where = Path(f"/proc/self/fd/{self._directory}").readlink()
        return RunningQemu(self.pid, self.vm, None if where.name.endswith(REMOVED) else where, *self._marks)

    def become(self, run_state: str) -> None:
        """Be in another run state."""
        before, self.run_state = self.run_state, run_state
        if run_state in EXECUTES and before not in EXECUTES:
            self.host.world.guest_goes_on(self)

    def boot(self) -> None:
        """The guest begins anew."""
        self.memory = self.host.world.newest_memory + 1
        self.host.world.newest_memory = self.memory
        self.become("running")

    def tell(self, name: str, data: dict[str, Any] | None = None) -> None:
        if self.on_event is not None:
            self.on_event(name, data or {})

    def stop_and_hand_on(self) -> int:
        """The guest stands still for good, as far as QEMU goes, and all of it is given away."""
        self.become("postmigrate")
        self.outgoing = None
        self.tell("STOP")
        return self.memory

    def end(self, *, tells: bool) -> None:
        """The process is gone, whatever ended it."""
        if not self.alive:
            return
        del self.host.qemus[self.pid]
        os.close(self._directory)
        outgoing, self.outgoing = self.outgoing, None
        if outgoing is not None:
            outgoing.cut()
        self.run_state = "absent"
        if tells:
            self.tell("EXIT")


class SimulatedMachine:
    """What an agent has of a VM: lives and dies with that agent, not with QEMU."""

    def __init__(self, vm: str, agent: AgentProcess, on_event: OnEvent) -> None:
        self.id, self.agent = vm, agent
        self.home = VmDirectory(agent.services.settings.vms_dir / vm, None)
        self.directory: Path = self.home.path
        self.qemu: SimulatedQemu | None = None
        self.guest_listens = False
        self.hardware: GuestHardware | None = None
        self.monitor = None
        self.migration_status = ""
        self.guest = cast(Any, None)
        self.console_log = ConsoleLog(self.directory, vm)
        self.interfaces = Interfaces(vm, self.home, agent.services.networks, None)
        self.copying = asyncio.Lock()
        self.stood_still_s = 0.0
        self._on_event = on_event

    @property
    def pid(self) -> int | None:
        return None if self.qemu is None else self.qemu.pid

    @property
    def kept(self) -> bool:
        return self.qemu is not None and self.qemu.kept

    def _hears(self, name: str, data: dict[str, Any]) -> None:
        if not self.agent.alive:
            return
        if name == "EXIT":
            self.qemu = None
        self._on_event(name, data)

    def _attach(self, qemu: SimulatedQemu) -> None:
        self.qemu, qemu.on_event = qemu, self._hears

    async def adopt(self) -> bool:
        self.agent.check_alive()
        found = self._find()
        if found is not None:
            self._attach(self.agent.host.qemus[found.pid])
        return found is not None

    def _find(self) -> RunningQemu | None:
        return choose(self.agent.host.qemus_of(self.id), self.directory, self.agent.services.settings.owner)

    async def start(self, request: StartRequest) -> str:
        self.agent.check_alive()
        host = self.agent.host
        found = self._find()
        if found is not None:
            self._attach(host.qemus[found.pid])
            raise MachineFailed("QEMU already runs this VM")
        if not request.incoming and without_agent(host.qemus_of(self.id)) is not None:
            raise MachineFailed("a QEMU of a node whose agent does not work runs this VM on this host")
        kept = request.assignment.spec.ha
        if kept and not host.lease_holds():
            raise MachineFailed("this node's lease is over")
        self.directory.mkdir(parents=True, exist_ok=True)
        if request.image.disk is not None and (wrong := host.world.disks.objection(self.id, self.directory)):
            host.world.violations.append(f"{host.name}: {wrong}")
        qemu = SimulatedQemu(self, incoming=request.incoming, kept=kept)
        host.qemus[qemu.pid] = qemu
        self._attach(qemu)
        if not request.incoming:
            qemu.boot()
        return request.machine or "pc-simulated"

    async def status(self) -> str:
        self.agent.check_alive()
        return "absent" if self.qemu is None else self.qemu.run_state

    async def execute(self, name: str, arguments: dict[str, Any] | None = None) -> object:
        self.agent.check_alive()
        qemu = self.qemu
        if qemu is None:
            raise MonitorFailed("there is no QEMU")
        match name:
            case "cont":
                qemu.become("running")
            case "stop":
                qemu.become("paused")
                qemu.tell("STOP")
            case "system_wakeup":
                qemu.become("running")
            case "system_powerdown":
                qemu.become("shutdown")
                qemu.tell("SHUTDOWN")
            case "system_reset":
                qemu.boot()
            case _:
                raise MonitorFailed(f"{name} is not simulated")
        return None

    async def kill(self) -> None:
        self.agent.check_alive()
        qemu, self.qemu = self.qemu, None
        if qemu is not None:
            qemu.end(tells=False)

    async def detach(self) -> None:
        if self.qemu is not None and self.agent.alive:
            self.qemu.on_event = None
        self.qemu = None

    def last_words(self) -> str:
        return ""

    def check_peer(self, connection: object) -> None:
        pass

    def exists(self) -> bool:
        return self.directory.exists()

    def has_disk(self) -> bool:
        return (self.directory / DISK_LAYER).exists()

    async def leave(self) -> None:
        self.agent.check_alive()

    async def destroy(self) -> None:
        await self.kill()
        self.home.remove()

    async def grow_hardware(self, spec: VmSpec, kind: AcceleratorKind, doing: Doing) -> bool:
        return False

    async def grow(self, size_bytes: int, doing: Doing) -> None:
        pass

    def bound_io(self, bytes_per_s: int | None, iops: int | None) -> None:
        pass

    def charged(self) -> list[tuple[str, float]]:
        return []

    async def screenshot(self) -> bytes:
        return b""


class SimulatedHypervisor:
    """Makes the handles of one agent."""

    def __init__(self, agent: AgentProcess) -> None:
        self._agent = agent

    def machine(self, vm: str, on_event: OnEvent) -> VirtualMachine:
        return cast(VirtualMachine, SimulatedMachine(vm, self._agent, on_event))  # ``pid`` can only be read here
