"""What the parts of one VM's worker share: the VM's record, its machine, and what the server says of it.

The reconciler, the clone reconciler and both sides of migrations take a context. Only the worker composes them; none of
them knows the worker or another part.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from novacron.agent.actions import Action, doing
from novacron.agent.fair_turns import FairTurns
from novacron.agent.host.clock import Clock, finished_in_thread, wait_at_most
from novacron.agent.host.lease import NodeLease
from novacron.agent.host.networks import NodeNetworks
from novacron.agent.host.volumes import Pools
from novacron.agent.identity import Identity
from novacron.agent.replicas.storage import ReplicaStorage
from novacron.agent.settings import AgentSettings
from novacron.agent.vm import keys, media
from novacron.agent.vm.balloon import GuestBalloon
from novacron.agent.vm.directory import DISK_LAYER
from novacron.agent.vm.guest_agent import GuestWatch
from novacron.agent.vm.hypervisor import Hypervisor, MachineFailed, OnEvent, VirtualMachine
from novacron.agent.vm.journal import Journal, Record
from novacron.agent.vm.keys import KeyMissing
from novacron.agent.vm.start_queue import StartQueue
from novacron.agent.vm.tenant import Tenant, tenant_of
from novacron.disk.images import LocalImage
from novacron.model.cpu import CpuModel
from novacron.model.encryption import DataKey
from novacron.model.guest_reports import RestoreProgress
from novacron.model.node import AcceleratorKind
from novacron.model.ownership import Claim, may_run
from novacron.model.vm import VmSpec, VmState, VmStatus
from novacron.model.waiting import WaitCode
from novacron.wire import messages as wire

WAIT_KNOWN_S_MAX = 30.0
"""How long others wait until it is known whether a VM runs here."""
REASON_CHARS_MAX = 500


class MayNotRun(MachineFailed):
    """The guest was about to execute on a node that does not own the VM: a defect, of which nothing came."""


class VmServices(msgspec.Struct):
    """What a node offers to each of its VMs."""

    settings: AgentSettings
    identity: Identity
    journal: Journal
    images: dict[str, LocalImage]
    accelerator: AcceleratorKind
    cpu: CpuModel | None
    storage_pools: Pools
    start_queue: StartQueue
    disk_turns: FairTurns
    """Of disks that are copied from other VMs or come out of backups."""
    clock: Clock
    lease: NodeLease
    networks: NodeNetworks
    hypervisor: Hypervisor
    replicas: ReplicaStorage
    find_vm: Callable[[str], VmContext | None]
    """Return another VM of this node."""
    run_in_background: Callable[[Coroutine[Any, Any, None]], None]
    """Start work that nobody waits for; it is dropped when too much of it runs already."""
    send: Callable[[wire.Message], None]
    """Queue a message for the server; it is dropped while there is no connection."""


class VmContext:
    """One VM as its worker's parts see it. ``wake`` makes the worker look again."""

    def __init__(
        self,
        vm: str,
        record: Record,
        services: VmServices,
        wake: Callable[[], None],
        on_event: OnEvent,
    ) -> None:
        self.vm = vm
        self.record = record
        self.services = services
        self.wake = wake
        self.machine: VirtualMachine = services.hypervisor.machine(vm, on_event)
        self.guest = GuestWatch(self.machine, wake)
        self.balloon = GuestBalloon(services.clock)
        self.statement: wire.Statement | None = None
        """The server's latest word about this VM."""
        self.assignment: wire.Assignment | None = None
        """How the VM is to be, as far as the worker has looked at it."""
        self.lock = asyncio.Lock()
        """Held while a step is done: the disk is in nobody else's hands then."""
        self.migration_changed = asyncio.Event()
        """Set whenever QEMU says something about its migration."""
        self.is_known = asyncio.Event()
        """Set once an earlier agent's QEMU has been adopted, and the server has sent the desired state."""
        self.exit_expected = False
        """QEMU's end, when it comes, was asked for."""
        self.trace = ""
        """The trace to which the present work belongs, until the VM is as it was asked for."""
        self.arrived_by: str | None = None
        """The migration that brought everything, until the guest goes on here."""
        self.failures = 0
        """Steps that failed in a row."""
        self.restore: RestoreProgress | None = None
        """How far its disk is that it already runs from; None: all of it is here."""
        self.repository_away = ""
        """Why what its disk lacks can't be read from its repository; empty: it can."""
        self._storing = asyncio.Lock()
        self._reported: wire.Observed | None = None

    async def wait_until_known(self) -> None:
        """Return once it is known whether the VM runs. Raises MachineFailed when that takes long."""
        if not await wait_at_most(self.services.clock, self.is_known, WAIT_KNOWN_S_MAX):
            raise MachineFailed(f"it is not known yet whether VM {self.vm} runs")

    def name_and_project(self) -> tuple[str, str]:
        """Return the VM's name and project, empty while they are not known."""
        assignment = self.assignment or (self.statement.assignment if self.statement is not None else None)
        return ("", "") if assignment is None else (assignment.name, assignment.project)

    def doing(self, action: Action, **about: str | int | None) -> contextlib.AbstractContextManager[None]:
        """Do something that was asked for, or that follows from what the VM should be."""
        name, project = self.name_and_project()
        return doing(action, trace=self.trace, vm=self.vm, vm_name=name, project=project, **about)

    async def store(self, **changes: object) -> None:
        """Remember durably; what could not be written, on a full disk for example, is not remembered at all.
        Raises OSError."""
        await self.update(lambda record: msgspec.structs.replace(record, **changes))

    async def update(self, change: Callable[[Record], Record]) -> None:
        """Replace the record by what ``change`` makes of it, durably: it counts once this returns. One at a time.

        The disk is written to in a thread: it may be slow, and the lease's heartbeats must not wait for it. Once the
        write has begun it is waited for, cancelled or not: memory and disk never tell two things. Raises OSError, and
        what ``change`` raises.
        """
        async with self._storing:
            record = change(self.record)
            writing = asyncio.ensure_future(asyncio.to_thread(self.services.journal.store, self.vm, record))
            try:
                await finished_in_thread(writing)
            finally:
                if writing.done() and not writing.cancelled() and writing.exception() is None:
                    self.record = record

    def check_may_run(self) -> None:
        """The last check before a guest executes here, on every path. Raises MayNotRun."""
        held = self.record.held
        if self.record.damaged or not may_run(held):
            raise MayNotRun(f"VM {self.vm} must not run on this node: its claim is {held.claim} at epoch {held.epoch}")

    def owns(self) -> bool:
        """Say whether this node owns the VM."""
        return self.record.held.claim is Claim.OWNER

    # what the VM consists of

    def assigned(self) -> wire.Assignment:
        """Return how the VM is to be; only to be asked while it has been assigned."""
        assert self.assignment is not None
        return self.assignment

    def spec(self) -> VmSpec:
        """Return what the VM is to be."""
        return self.assigned().spec

    def image(self) -> LocalImage:
        """Return the VM's image. Raises MachineFailed when this node does not hold it."""
        name = self.spec().image
        image = self.services.images.get(name)
        if image is None:
            raise MachineFailed(f"this node does not hold image {name}")
        if not image.is_(self.assigned().image_digest):
            raise MachineFailed(f"the image {name} on this node is not the one that the VM was created from")
        return image if self.spec().own_disk else image.without_disk()

    def image_names(self) -> set[str]:
        """Return the names of the images that the VM uses, as far as this node has been told, or remembers."""
        assignment = self.statement.assignment if self.statement is not None else None
        if assignment is not None:
            return {assignment.spec.image, *assignment.spec.media}
        spec = (self.record.description or {}).get("spec") or {}
        drives = spec.get("cdroms") or ()
        names = (spec.get("image"), spec.get("kernel"), spec.get("initrd"), *(drive.get("iso") for drive in drives))
        return {str(name) for name in names if name is not None}

    def media(self) -> dict[str, LocalImage]:
        """Return the images that the VM uses beside its own, by name. Raises MediaMissing if one is not here."""
        return media.find(self.services.images, self.spec())

    def disk_bytes(self, image: LocalImage) -> int:
        """Return the size of the VM's disk, 0 for none."""
        return self.spec().disk_bytes(image.info.disk_bytes)

    def memory_bytes(self) -> int:
        """Return the size of the memory with which the guest was started."""
        hardware = self.machine.hardware
        return (hardware.memory_mib if hardware is not None else self.spec().memory_mib) << 20

    def volumes(self) -> tuple[wire.VolumeAttached, ...]:
        """Return the volumes that the VM has."""
        return () if self.assignment is None else self.assignment.volumes

    def files_to_move(self) -> list[Path]:
        """Return the files of the disks that move with the VM, as they lie here."""
        own = [self.machine.directory / DISK_LAYER, *self.machine.home.shared()]
        pools = self.services.storage_pools
        volumes = [pools.path(volume.pool, volume.id) for volume in self.volumes() if volume.moves]
        return [path for path in own + volumes if path.exists()]

    def tenant(self) -> Tenant:
        """Return to whom the VM's pages belong."""
        return tenant_of(self.assigned())

    def disk_key(self) -> DataKey | None:
        """Return the key of the VM's own disk, None if that is not encrypted. Raises KeyMissing."""
        return keys.disk_key(self.assigned())

    def keep_console_log(self) -> None:
        """Keep what the guest prints within limits, encrypted if its disk is. Called in a thread. Raises OSError."""
        self.machine.console_log.keep(self._console_key())

    def read_console_log(self, bytes_max: int) -> bytes:
        """Return the end of what the guest printed. Called in a thread. Raises OSError."""
        return self.machine.console_log.read(bytes_max, self._console_key())

    def _console_key(self) -> DataKey | None:
        assignment = self.assignment or (self.statement.assignment if self.statement is not None else None)
        try:
            return None if assignment is None else keys.disk_key(assignment)
        except KeyMissing:
            return None

    # reports

    def missing_memory_reason(self) -> str:
        """Say where memory of the VM still is, or nothing when all of it is here."""
        moving = self.record.post_copy
        return "" if moving is None else f"its memory is still on its way from node {moving.peer}"

    def forget_reports(self) -> None:
        """Report the VM's state again even where it has not changed: the link is new."""
        self._reported = None

    def report(self, state: VmState, reason: str = "", code: WaitCode | None = None, epoch: int | None = None) -> None:
        """Report the VM's state to the server, unless it is unchanged. ``code``: what keeps it from being as it was
        asked to be; ``epoch``: of an order that could not be noted, by default that of the record."""
        assignment = self.statement.assignment if self.statement is not None else None
        started_as = "" if assignment is None else assignment.machine  # by a host whose place this one has taken
        status = VmStatus(
            state=state,
            reason=reason[:REASON_CHARS_MAX],
            reason_code=code or "",
            accelerator=self.services.accelerator,
            machine=self.record.machine or started_as,
            cpu=self.record.cpu,
            pid=self.machine.pid or 0,
            reboots=self.record.reboots,
            halted_at_start=self.record.halted_at_start,
            crashes=self.record.crashes,
            resets=self.record.resets,
            hardware_renewals=self._renewals_done(assignment),
            booted_once_at=self.booted_once_at(assignment),
            guest=self.guest.known,
            hardware=self.machine.hardware,
            balloon_mib=self.balloon.left_mib,
            kept=self._ends_with_lease(),
            record_lost=self.record.damaged,
            restore=self.restore,
        )
        # With the epoch: the server ignores what is reported at an earlier one.
        report = wire.Observed(self.vm, self.record.held.epoch if epoch is None else epoch, status)
        if report != self._reported:
            self._reported = report
            self.services.send(report)

    def _renewals_done(self, assignment: wire.Assignment | None) -> int:
        """Return how many times processor and machine type were chosen anew, here or where the VM was before."""
        before = 0 if assignment is None else assignment.hardware_renewals
        return max(self.record.hardware_renewals, before)

    def booted_once_at(self, assignment: wire.Assignment | None) -> int:
        """Return at which start its guest last began from ``boot_once``, here or where the VM was before; -1: never."""
        before = -1 if assignment is None else assignment.booted_once_at
        return max(self.record.booted_once_at, before)

    def kept_hardware(self, assignment: wire.Assignment) -> tuple[CpuModel | None, str]:
        """Return processor and machine type that the VM keeps at its next start; None and empty: to be chosen."""
        if assignment.spec.hardware_renewals > self._renewals_done(assignment):
            return None, ""
        return self.record.cpu, self.record.machine or assignment.machine

    def _ends_with_lease(self) -> bool:
        if self.machine.pid is not None:
            return self.machine.kept
        return self.assignment is not None and self.assignment.spec.ha
