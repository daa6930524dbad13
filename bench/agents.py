"""Nodes without QEMU: the real link to the server, and VMs that reach any desired state at once."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import uvloop

from novacron.agent import identity
from novacron.agent.control.link import LinkClient
from novacron.client import Client, load_config
from novacron.model.errors import InvalidInput
from novacron.model.guest_reports import Guest
from novacron.model.node import Accelerator, AcceleratorKind, ImageInfo, Inventory
from novacron.model.token import decode_ticket
from novacron.model.vm import Power, VmState, VmStatus
from novacron.telemetry import logs
from novacron.wire import messages as wire

IMAGE = "simulated"
JOIN_TRIES = 60
CHANGES_EVERY_S = 0.1
STATES = {Power.RUNNING: VmState.RUNNING, Power.STOPPED: VmState.STOPPED, Power.PAUSED: VmState.PAUSED}


class SimulatedAgent:
    """One node; its VMs reach their desired state at once."""

    def __init__(self, who: identity.Identity) -> None:
        self._number = self._acknowledged = 0
        self._since = time.monotonic()
        self._sent: dict[str, VmStatus] = {}
        self._epochs: dict[str, int] = {}
        self._changes = itertools.count(1)
        self._turn: Iterator[str] = iter(())
        self._link = LinkClient(who, self._hello, self._receive, self._lost, self._beat, lambda: None)
        self.name = who.name
        self._version = "0"

    async def run(self) -> None:
        await self._link.run()

    def upgrade(self, version: str) -> None:
        """Come back as another version, as an agent does whose package is upgraded."""
        self._version = version
        self._link.restart()

    def change(self) -> None:
        """Report something new of the next VM, if there is one."""
        vm = next(self._turn, None)
        if vm is None:
            self._turn = iter(list(self._sent))
            vm = next(self._turn, None)
        status = None if vm is None else self._sent.get(vm)
        if vm is None or status is None or status.state is not VmState.RUNNING:
            return
        guest = Guest(hostname=f"change-{next(self._changes)}")
        self._sent[vm] = msgspec.structs.replace(status, guest=guest)
        self._link.send(wire.Observed(vm, self._epochs[vm], self._sent[vm]))

    def _hello(self) -> wire.Hello:
        inventory = Inventory(
            cpus=64, memory_mib=1 << 20, architecture="x86_64", kernel="6.1", qemu_version="7.2",
            accelerator=Accelerator(AcceleratorKind.KVM, ""), images=(ImageInfo(IMAGE, "0" * 64, 1, "kernel"),),
            bridge="br0", dwcp_endpoint="127.0.0.1:1", agent_version=self._version,
        )  # fmt: skip
        self._number = self._acknowledged = 0
        self._since = time.monotonic()
        return wire.Hello(wire.PROTOCOL, inventory, tuple(wire.HeldVm(vm, None) for vm in self._sent))

    def _lost(self) -> None:
        self._sent.clear()

    def _beat(self) -> wire.Heartbeat:
        self._number += 1
        return wire.Heartbeat(
            self._number, self._acknowledged, time.monotonic() - self._since, (), clock=time.time()
        )  # fmt: skip

    def _receive(self, message: wire.Message) -> None:
        if isinstance(message, wire.Beaten):
            self._acknowledged = message.number
        elif isinstance(message, wire.Desired):
            for statement in message.statements:
                self._obey(statement)

    def _obey(self, statement: wire.Statement) -> None:
        assignment = statement.assignment
        if assignment is None:
            if self._sent.pop(statement.vm, None) is not None:
                self._link.send(wire.Removed(statement.vm))
            return
        state = VmState.ABSENT if assignment.deleting else STATES[assignment.spec.power]
        status = VmStatus(
            state=state, machine="pc-i440fx-7.2", reboots=assignment.spec.reboots, resets=assignment.spec.resets
        )
        known = self._sent.get(statement.vm)
        if known is None or msgspec.structs.replace(known, guest=None) != status:
            self._sent[statement.vm], self._epochs[statement.vm] = status, statement.order.epoch
            self._link.send(wire.Observed(statement.vm, statement.order.epoch, status))


def _joined(directory: Path, first: int, count: int) -> list[identity.Identity]:
    client = Client(load_config())
    identities = []
    for number in range(first, first + count):
        name = f"sim-{number:04d}"
        home = directory / name
        identity_ = identity.load(home)
        identities.append(identity_ or _join(client, home, name))
    return identities


def _join(client: Client, home: Path, name: str) -> identity.Identity:
    """Join as one node of very many with one address, which is let in so often a second."""
    ticket = decode_ticket(client.join_token(name, accept=True))
    for _ in range(JOIN_TRIES):
        try:
            return identity.join(home, ticket, name)
        except InvalidInput as error:
            if "requests a second" not in error.detail:
                raise
            time.sleep(1)
    raise RuntimeError(f"{name} is not let in")


async def _run(who: list[identity.Identity], changes: Path, orders: Path) -> None:
    agents = [SimulatedAgent(identity_) for identity_ in who]
    async with asyncio.TaskGroup() as group:
        for number, agent in enumerate(agents):
            group.create_task(agent.run())
            if number % 20 == 19:
                await asyncio.sleep(0.05)
        group.create_task(_change(agents, changes))
        group.create_task(_obey_orders({agent.name: agent for agent in agents}, orders))


async def _change(agents: list[SimulatedAgent], changes: Path) -> None:
    """Let VMs change, as often a second as the file says."""
    due = 0.0
    for agent in itertools.cycle(agents):
        while due < 1:
            await asyncio.sleep(CHANGES_EVERY_S)
            due += CHANGES_EVERY_S * _rate(changes)
        due -= 1
        agent.change()


async def _obey_orders(agents: dict[str, SimulatedAgent], orders: Path) -> None:
    """Upgrade agents as the file says, to which lines are added: the name of a node, and a version."""
    read = 0
    while True:
        await asyncio.sleep(CHANGES_EVERY_S)
        with contextlib.suppress(FileNotFoundError), orders.open() as file:
            file.seek(read)
            whole, _, _ = file.read().rpartition("\n")
            read += len(whole) + 1 if whole else 0
            for line in whole.splitlines():
                name, _, version = line.partition(" ")
                if name in agents:
                    agents[name].upgrade(version)


def _rate(changes: Path) -> float:
    try:
        return float(changes.read_text() or 0)
    except FileNotFoundError:
        return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--changes", type=Path, required=True, help="file that says how many VMs change a second")
    parser.add_argument("--orders", type=Path, required=True, help="file that says which nodes get which version")
    options = parser.parse_args()
    logs.set_up("agents", "error")
    who = _joined(options.directory, options.first, options.count)
    print(json.dumps({"joined": len(who)}), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_run(who, options.changes, options.orders))


if __name__ == "__main__":
    main()
