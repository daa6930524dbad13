"""The real worker runs with a simulated hypervisor and clock: what it needs of them is in their protocols."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock, Mock

import msgspec

from novacron.agent.actions import Doing
from novacron.agent.vm.directory import VmDirectory
from novacron.agent.vm.hypervisor import MachineFailed, OnEvent, VirtualMachine
from novacron.agent.vm.interfaces import Interfaces
from novacron.agent.vm.journal import Record
from novacron.agent.vm.launch import StartRequest
from novacron.agent.vm.reconciler import RETRY_S
from novacron.agent.worker import RETRY_S_MAX, Worker
from novacron.disk.images import LocalImage
from novacron.model.guest_hardware import GuestHardware
from novacron.model.node import AcceleratorKind
from novacron.model.ownership import Claim, Order, OrderKind
from novacron.model.vm import Power, VmSpec, VmState
from novacron.wire import messages as wire
from tests.support.agent import services_in


class SimulatedMachine:
    """A VM without a QEMU: a run state."""

    def __init__(self, vm: str, directory: Path, on_event: OnEvent) -> None:
        self.id, self.home = vm, VmDirectory(directory / vm, None)
        self.directory = self.home.path
        self.pid: int | None = None
        self.kept, self.guest_listens = False, False
        self.hardware: GuestHardware | None = None
        self.monitor = None
        self.migration_status = ""
        self.guest = cast(Any, None)
        self.interfaces = Interfaces(vm, self.home, cast(Any, None), None)
        self.copying = asyncio.Lock()
        self.stood_still_s = 0.0
        self.run_state, self.commands, self._on_event = "absent", list[str](), on_event

    async def adopt(self) -> bool:
        return self.pid is not None

    async def start(self, request: StartRequest) -> str:
        self.pid, self.run_state = 1, "inmigrate" if request.incoming else "running"
        return "pc-simulated"

    async def status(self) -> str:
        return self.run_state

    async def execute(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        self.commands.append(name)
        if name == "system_powerdown":
            self.run_state = "shutdown"
            self._on_event("SHUTDOWN", {})

    async def kill(self) -> None:
        self.pid, self.run_state = None, "absent"

    async def detach(self) -> None:
        pass

    def last_words(self) -> str:
        return ""

    def check_peer(self, connection: object) -> None:
        pass

    def exists(self) -> bool:
        return self.directory.exists()

    def has_disk(self) -> bool:
        return False

    async def leave(self) -> None:
        pass

    async def destroy(self) -> None:
        await self.kill()

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


async def until_reported(messages: asyncio.Queue[wire.Message], state: VmState) -> None:
    async with asyncio.timeout(20):
        message = await messages.get()
        while not (isinstance(message, wire.Observed) and message.status.state is state):
            message = await messages.get()


async def test_the_real_worker_starts_stops_and_removes_a_simulated_vm(tmp_path: Path) -> None:
    messages: asyncio.Queue[wire.Message] = asyncio.Queue()
    services = services_in(tmp_path)
    services.send = messages.put_nowait
    services.pages = Mock(prepare=AsyncMock())
    machines: list[SimulatedMachine] = []

    def machine(vm: str, on_event: OnEvent) -> VirtualMachine:
        machines.append(SimulatedMachine(vm, tmp_path / "vms", on_event))
        return cast(VirtualMachine, machines[-1])

    services.hypervisor = Mock(machine=machine)
    services.images["tiny"] = Mock(spec=LocalImage, disk=None, info=Mock(disk_bytes=0))
    worker = Worker("vm-a", Record(), services)
    running = asyncio.create_task(worker.run())

    def say(kind: OrderKind, epoch: int, power: Power) -> None:
        spec = VmSpec(image="tiny", power=power, starts=1)
        assignment = wire.Assignment("vm-a", "a", spec, False, "", 0, None, "default", bytes(32))
        own = kind is OrderKind.OWN
        worker.set_desired(wire.Statement("vm-a", Order(kind, epoch), assignment if own else None, None))

    say(OrderKind.OWN, 1, Power.RUNNING)
    await until_reported(messages, VmState.RUNNING)
    say(OrderKind.OWN, 1, Power.STOPPED)
    await until_reported(messages, VmState.STOPPED)
    assert machines[0].commands == ["system_powerdown"]
    say(OrderKind.GONE, 2, Power.STOPPED)
    async with asyncio.timeout(20):
        await running
    assert messages.get_nowait() == wire.Removed("vm-a")
    assert services.journal.load_one("vm-a").held.claim is Claim.NONE


async def test_a_vm_that_cannot_start_is_retried_with_growing_pauses_and_little_logging(tmp_path: Path) -> None:
    messages: list[wire.Message] = []
    services = services_in(tmp_path)
    services.send = messages.append
    services.pages = Mock(prepare=AsyncMock())
    machine = SimulatedMachine("vm-a", tmp_path / "vms", lambda name, data: None)
    starts = AsyncMock(side_effect=MachineFailed("no tap"))
    machine.start = starts  # type: ignore[method-assign]  # the start that fails
    services.hypervisor = Mock(machine=lambda vm, on_event: machine)
    services.images["tiny"] = Mock(spec=LocalImage, disk=None, info=Mock(disk_bytes=0))
    worker = Worker("vm-a", Record(), services)
    spec = VmSpec(image="tiny", power=Power.RUNNING, starts=1)
    assignment = wire.Assignment("vm-a", "a", spec, False, "", 0, None, "default", bytes(32))
    worker.set_desired(wire.Statement("vm-a", Order(OrderKind.OWN, 1), assignment, None))

    pauses_s = [await worker._try_step() for _ in range(8)]
    assert starts.await_count == 8
    assert pauses_s[0] <= RETRY_S and pauses_s[-1] > RETRY_S_MAX / 2, "ever later, with a limit"
    states = [message.status.state for message in messages if isinstance(message, wire.Observed)]
    assert states == [VmState.STARTING, *[VmState.FAILED] * 8], "one change of state is one event"
    last = messages[-1]
    assert isinstance(last, wire.Observed) and last.status.reason == "no tap; tried 8 times"

    worker.set_desired(
        wire.Statement("vm-a", Order(OrderKind.OWN, 1), msgspec.structs.replace(assignment, name="b"), None)
    )
    assert await worker._try_step() <= RETRY_S, "what was asked anew is tried at once and soon again"
