"""An agent's services without a network, a server or QEMU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

from novacron import pki
from novacron.agent.fair_turns import FairTurns
from novacron.agent.host.clock import Clock, SystemClock
from novacron.agent.host.database_mark import RememberedMark
from novacron.agent.host.lease import NodeLease
from novacron.agent.host.networks import NodeNetworks
from novacron.agent.host.passthrough import Passthrough
from novacron.agent.host.revoked_keys import RevokedKeys
from novacron.agent.host.volumes import Pools
from novacron.agent.migration.services import NodeServices
from novacron.agent.migration.transport import DwcpTransport, MemoryTransport
from novacron.agent.replicas.storage import ReplicaStorage
from novacron.agent.settings import AgentSettings
from novacron.agent.vm.journal import Journal
from novacron.agent.vm.machine import QemuHypervisor
from novacron.agent.vm.start_queue import StartQueue
from novacron.dwcp.admittance import Admittance
from novacron.model.node import AcceleratorKind
from novacron.model.vm import Restart, VmSpec
from novacron.wire import messages as wire

sent_messages: list[Any] = []


def services_in(directory: Path, clock: Clock | None = None, transport: MemoryTransport | None = None) -> NodeServices:
    settings = AgentSettings(directory, directory / "images", "host-a")
    return NodeServices(
        settings=settings,
        identity=cast(Any, None),
        journal=Journal(directory / "journal"),
        listener=cast(Any, None),
        images={},
        accelerator=AcceleratorKind.TCG,
        cpu=None,
        endpoint="127.0.0.1:7445",
        connections=cast(Any, None),
        transport=transport or DwcpTransport(cast(Any, None), cast(Any, None), settings),
        pages=cast(Any, Mock()),
        find_vm=lambda _: None,
        neighbours=list,
        run_in_background=lambda work: work.close(),
        storage_pools=Pools(settings),
        start_queue=StartQueue(4),
        disk_turns=FairTurns(4),
        clock=clock or SystemClock(),
        lease=NodeLease(settings.lease_path),
        database_mark=RememberedMark(settings.database_mark_path),
        revoked=RevokedKeys(directory / "revoked.json", Admittance(pki.peer_key_hash)),
        networks=NodeNetworks(settings),
        hypervisor=QemuHypervisor(settings, NodeNetworks(settings), Passthrough()),
        replicas=ReplicaStorage(settings.replicas_dir),
        send=sent_messages.append,
    )


def assigned(restart: Restart) -> wire.Assignment:
    spec = VmSpec(image="tiny", starts=3, restart=restart)
    return wire.Assignment("vm-a", "a", spec, False, "", 0, None, "default", bytes(32))
