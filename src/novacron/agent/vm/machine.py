"""One VM on this host: its QEMU, its tap, its directory, put together."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Any

from novacron.agent.actions import Action, Doing
from novacron.agent.host.clock import finished_in_thread
from novacron.agent.host.dedicated_cpus import DedicatedCpus
from novacron.agent.host.instances import mark_of
from novacron.agent.host.networks import NodeNetworks
from novacron.agent.host.passthrough import Passthrough
from novacron.agent.settings import AgentSettings
from novacron.agent.vm import keys
from novacron.agent.vm.directory import DISK_LAYER, NoAccount, VmDirectory
from novacron.agent.vm.hypervisor import AnotherQemu, MachineFailed, OnEvent
from novacron.agent.vm.interfaces import Interfaces
from novacron.agent.vm.launch import HostParts, Launch, LaunchFailed, Opener, StartRequest
from novacron.agent.vm.leftovers import owner_of, without_agent
from novacron.disk import overlay
from novacron.disk.overlay import OverlayFailed
from novacron.model.guest_hardware import GuestHardware
from novacron.model.node import AcceleratorKind
from novacron.model.vm import VmSpec
from novacron.net.tap import NetworkFailed
from novacron.qemu import block, boot, command, confine, hotplug, pid_namespace, process, running, screenshot, usage
from novacron.qemu.boot import BootPlan
from novacron.qemu.confine import Cgroup
from novacron.qemu.guest import GuestAgent
from novacron.qemu.monitor import Monitor, MonitorFailed
from novacron.qemu.running import RunningQemu
from novacron.qemu.vfio import DeviceFailed
from novacron.telemetry import logs

log = logs.get(__name__)

PICTURE_BYTES_MAX = 3 << 20


class Machine:
    """The process of one VM, if there is one. ``on_event`` is called for QMP events and, as ``EXIT``, at its end."""

    def __init__(
        self,
        id: str,
        settings: AgentSettings,
        networks: NodeNetworks,
        parts: HostParts,
        on_event: OnEvent,
    ) -> None:
        self.id = id
        self.home = VmDirectory(settings.vms_dir / id, settings.uid_base)
        self.directory = self.home.path
        self.pid: int | None = None
        self.monitor: Monitor | None = None
        self.hardware: GuestHardware | None = None
        """What the guest has; None: it does not run."""
        self.migration_status = ""
        """QEMU's latest word on its migration, from its events: the only one while its main loop waits for memory."""
        self.guest = GuestAgent(command.guest_path(self.directory))
        self._picturing = asyncio.Lock()
        self.copying = asyncio.Lock()
        """Held while its disk is copied or shared: by one at a time, and always before the worker's own lock."""
        self.stood_still_s = 0.0
        """For how long the guest last did."""
        self._stopped_at: float | None = None
        """Since when it does (monotonic clock, seconds), at the latest; None: it did not run before, in this QEMU."""
        self.kept = False
        """Its QEMU ends with this node's lease."""
        self.guest_listens = False
        """A guest agent has opened its port."""
        self._settings = settings
        self._cgroup = Cgroup(f"{settings.name}.{id}", mark_of(networks.instance, id))
        self._tell = on_event
        self._ending: asyncio.Task[None] | None = None
        self.interfaces = Interfaces(id, self.home, networks, settings.bridge)
        self._passthrough, self._cpus = parts
        self._launch = Launch(id, self.home, settings, self.interfaces, parts)
        self.console_log = self._launch.console_log
        self._disk_bytes = 0
        """What its disk is known to have, at least."""

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        if name == "MIGRATION":
            self.migration_status = str(data["status"])
        elif name == "VSERPORT_CHANGE":
            self.guest_listens = bool(data["open"])
        elif name == "DEVICE_DELETED":
            self.interfaces.unsure = True
        elif name == "STOP":
            self._stopped_at = time.monotonic()
        elif name == "RESUME":
            now = time.monotonic()
            self.stood_still_s = 0.0 if self._stopped_at is None else now - self._stopped_at
        self._tell(name, data)

    async def adopt(self) -> bool:
        """Take over the QEMU that an earlier agent left running; say whether there is one.

        What that agent was carrying is lost: its sockets are removed.
        """
        await asyncio.to_thread(self.home.clear_sockets)
        own = await self._find()
        if own is None:
            await asyncio.to_thread(self._cpus.leave, self.id)
            return False
        self.pid, self.kept = own.pid, process.is_kept(own.pid)
        self._launch.note_devices()
        await asyncio.to_thread(self.console_log.adopt, own.pid)
        self._stopped_at = time.monotonic()  # if it is paused: nobody knows since when
        await self._attach()
        return True

    async def start(self, request: StartRequest) -> str:
        """Start QEMU and return the versioned name of the machine type that it runs, to be replayed later.

        Raises MachineFailed.
        """
        await self._check_alone(incoming=request.incoming)
        uid = await self._make_directory(request)
        try:
            await self._spawn(request, uid)
        except (DeviceFailed, LaunchFailed) as error:
            raise MachineFailed(str(error)) from error
        except (NetworkFailed, OSError) as error:
            raise MachineFailed(f"can't start {self._settings.qemu_binary}: {error}") from error
        self._stopped_at = None
        try:
            await self._attach()
            assert self.monitor is not None
            hardware = request.assignment.hardware
            if request.incoming and hardware is not None:
                await hotplug.replay(self.monitor, hardware)
                self.hardware = await hotplug.look(self.monitor)
            plan = BootPlan.of(request.assignment.spec)
            if plan.once is not None:
                await boot.forget_once(self.monitor, plan)
            return request.machine or await self._machine_type(self.monitor, request.machine_type())
        except MonitorFailed as error:
            said = process.log_tail(self.directory)
            await self.kill()
            raise MachineFailed(f"QEMU did not start: {said or error}") from error

    async def _find(self) -> RunningQemu | None:
        """Return the QEMU that runs this VM for this node, wherever it does."""
        return await asyncio.to_thread(running.find, self.directory, self._settings.owner)

    async def _check_alone(self, *, incoming: bool) -> None:
        """Raise MachineFailed while a QEMU on this host may run this VM: for this node, or for one without an agent.

        A guest that is ``incoming`` does not run before the node that it comes from has promised not to run it.
        """
        own = await self._find()
        if own is not None:
            self.pid, self.kept = own.pid, process.is_kept(own.pid)
            self._watch_end(own.pid)
            raise MachineFailed(f"QEMU {own.pid} already runs this VM, in {own.directory or 'a removed directory'}")
        if incoming:
            return
        other = await asyncio.to_thread(lambda: without_agent(running.of_vm(self.id)))
        if other is not None:
            raise AnotherQemu(
                f"QEMU {other.pid} of node {owner_of(other).partition('/')[2]}, whose agent is not running, runs this"
                " VM on this host: start that agent, or end the process"
            )

    async def _make_directory(self, request: StartRequest) -> int | None:
        """Have the VM's directory and its disk; return its user number. Raises MachineFailed."""
        image = request.image
        try:
            uid = await asyncio.to_thread(self.home.make)
        except (NoAccount, OSError) as error:
            raise MachineFailed(f"the VM's directory can't be created: {error}") from error
        if image.disk is not None and not self.has_disk():
            try:
                size = request.assignment.spec.disk_bytes(image.info.disk_bytes)
                key = keys.disk_key(request.assignment)
                await overlay.create(self.directory / DISK_LAYER, image.disk, size, key)
            except (OverlayFailed, OSError, TimeoutError) as error:
                raise MachineFailed(f"the VM's disk can't be created: {error}") from error
        return uid

    async def _spawn(self, request: StartRequest, uid: int | None) -> None:
        """Start the process, with what it needs handed to it open.

        Raises LaunchFailed, NetworkFailed, DeviceFailed, OSError.
        """
        spec = request.assignment.spec
        with Opener(self.home) as opener:
            arguments = await self._launch.prepare(request, uid, opener)
            within = process.Surroundings(
                marks=running.marks(self._settings.owner, self._settings.state_dir),
                lease=self._settings.lease_path if spec.ha else None, own_pids=uid is not None,
            )  # fmt: skip
            spawning = asyncio.ensure_future(
                asyncio.to_thread(process.spawn, arguments, self.directory, opener.descriptors, within)
            )
            try:
                await finished_in_thread(spawning)
            finally:  # when cancelled, too: ending the VM then needs its process id
                if spawning.done() and not spawning.cancelled() and spawning.exception() is None:
                    self.pid, self.kept = spawning.result(), spec.ha
        self._bound(spec, request.accelerator)

    def _bound(self, spec: VmSpec, kind: AcceleratorKind) -> None:
        """Limit what QEMU uses of this host."""
        assert self.pid is not None
        try:
            self._cgroup.place(self.pid, spec.vcpus, spec.memory_mib, kind)
        except OSError as error:
            if self.home.uid() is not None:
                log.warning("a VM has no limits on what it uses of this host", vm=self.id, error=str(error))

    def bound_io(self, bytes_per_s: int | None, iops: int | None) -> None:
        """Limit what QEMU itself reads and writes in a second, even if its guest has taken it over."""
        try:
            self._cgroup.bound_io(self.directory, bytes_per_s, iops)
        except OSError as error:
            log.info("this host gives a VM no limits of reads and writes", vm=self.id, error=str(error))

    def charged(self) -> list[tuple[str, float]]:
        """Return what its cgroup counts, as far as this host has one for it."""
        values: list[tuple[str, float]] = []
        with contextlib.suppress(OSError, KeyError, ValueError):
            values.append(("novacron_vm_memory_charged_bytes", self._cgroup.charged_bytes()))
            values.append(("novacron_vm_cpu_throttled_seconds_total", self._cgroup.throttled_s()))
        return values

    async def grow_hardware(self, spec: VmSpec, kind: AcceleratorKind, doing: Doing) -> bool:
        """Give a guest that runs the processors and the memory that it should have; say whether there were any.

        Raises MonitorFailed.
        """
        has = self.hardware
        if has is None or self.monitor is None:
            return False
        cpus, memory_mib = spec.vcpus - has.vcpus_in_all, spec.memory_mib - has.memory_in_all_mib
        if cpus <= 0 and memory_mib <= 0:
            return False
        with doing(Action.GROW, vcpus=max(0, cpus), memory_mib=max(0, memory_mib)):
            self._bound(spec, kind)
            try:
                if memory_mib > 0:
                    await hotplug.add_memory(self.monitor, memory_mib)
                if cpus > 0:
                    await hotplug.add_cpus(self.monitor, cpus)
            finally:
                self.hardware = await hotplug.look(self.monitor)
        return True

    async def grow(self, size_bytes: int, doing: Doing) -> None:
        """Make the disk of a VM that runs this large, if it is smaller. Raises MonitorFailed."""
        if size_bytes <= self._disk_bytes:
            return
        assert self.monitor is not None
        has = await block.size_bytes(self.monitor)
        if 0 < has < size_bytes:
            with doing(Action.GROW, disk_bytes=size_bytes):
                await self.execute("block_resize", {"node-name": await block.top(self.monitor), "size": size_bytes})
        self._disk_bytes = size_bytes

    async def _machine_type(self, monitor: Monitor, alias: str) -> str:
        for machine in await monitor.execute("query-machines"):
            if machine.get("alias") == alias:
                return str(machine["name"])
        return alias

    async def _attach(self) -> None:
        pid = self.pid
        assert pid is not None
        self.migration_status, self._disk_bytes = "", 0
        self._watch_end(pid)
        await self._connect()

    def _watch_end(self, pid: int) -> None:
        if self._ending is not None:
            self._ending.cancel()
        self._ending = asyncio.create_task(self._watch(pid))

    async def _connect(self) -> None:
        self.monitor = await Monitor.connect(
            command.monitor_path(self.directory), self._on_event, lambda: self.pid is not None
        )
        self.hardware = await hotplug.look(self.monitor)
        await self._place_threads(self.monitor)
        if self.hardware.balloon:
            await usage.watch_balloon(self.monitor)
        ports = await self.monitor.execute("query-chardev")
        self.guest_listens = any(port["label"] == "guest0" and port["frontend-open"] for port in ports)

    async def _place_threads(self, monitor: Monitor) -> None:
        """Let each vCPU run on the CPU that it has for itself, if it has one, and all else on those that VMs share."""
        threads = await hotplug.vcpu_threads(monitor)
        if self.pid is None:
            return
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended: ``_watch`` says so
            of_host = await asyncio.to_thread(pid_namespace.host_threads, self.pid)
            await asyncio.to_thread(self._cpus.runs, self.id, self.pid, [of_host.get(thread, -1) for thread in threads])

    async def _watch(self, pid: int) -> None:
        await process.ended(pid)
        await asyncio.to_thread(self._cpus.leave, self.id)
        self.pid, self.guest_listens, self.hardware = None, False, None
        self._on_event("EXIT", {})

    async def status(self) -> str:
        """Return QEMU's run state, or ``absent`` when there is no process. Raises MonitorFailed when it hangs."""
        if self.pid is None:
            return "absent"
        try:
            if self.monitor is None:
                await self._connect()
            assert self.monitor is not None
            return await self.monitor.status()
        except MonitorFailed:
            if self.pid is None:
                return "absent"
            raise

    async def execute(self, name: str, arguments: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - differs by command
        if self.monitor is None:
            raise MonitorFailed(f"there is no QEMU to run {name}")
        return await self.monitor.execute(name, arguments)

    def check_peer(self, connection: socket.socket) -> None:
        """Raise OSError unless a Unix socket that was connected to is this QEMU's."""
        confine.check_peer(connection, self.pid or 0)

    def last_words(self) -> str:
        return process.log_tail(self.directory)

    async def screenshot(self) -> bytes:
        """Return what the display shows, as a PNG file. Raises MonitorFailed, OSError."""
        async with self._picturing:
            if self.monitor is None:
                raise MonitorFailed("there is no QEMU to make a picture")
            return await screenshot.take(self.monitor, PICTURE_BYTES_MAX)

    async def detach(self) -> None:
        """Let go of QEMU without touching it."""
        if self._ending is not None:
            self._ending.cancel()
            await asyncio.gather(self._ending, return_exceptions=True)
            self._ending = None
        if self.monitor is not None:
            await self.monitor.close()
            self.monitor = None
        try:
            await asyncio.to_thread(self.console_log.keep, None)
        except OSError as error:
            log.info("a console log can't be kept", vm=self.id, error=str(error))

    async def kill(self) -> None:
        """End QEMU at once, and take its tap away."""
        own = await self._find()
        pids = {self.pid, None if own is None else own.pid} - {None}
        await self.detach()
        for pid in pids:
            assert pid is not None
            await process.kill(pid)
        self.pid = None
        await self._launch.tpm.end()
        try:
            self._cgroup.remove()
        except OSError as error:
            log.warning("a VM's cgroup stays", vm=self.id, error=str(error))
        await self.interfaces.delete()
        await asyncio.to_thread(self._passthrough.leave, self.id)
        await asyncio.to_thread(self._cpus.leave, self.id)

    def exists(self) -> bool:
        """Say whether anything of the VM is here."""
        return self.directory.exists()

    def has_disk(self) -> bool:
        return (self.directory / DISK_LAYER).exists()

    async def leave(self) -> None:
        """The VM runs elsewhere now: cut its network off. Its QEMU stays, paused."""
        await self.interfaces.leave()

    async def destroy(self) -> None:
        """End QEMU and remove every trace of the VM from this host."""
        await self.kill()
        self.interfaces.drop_late_frames()
        self.console_log.drop()
        await asyncio.to_thread(self.home.remove)


class QemuHypervisor:
    """QEMU on this host."""

    def __init__(self, settings: AgentSettings, networks: NodeNetworks, passthrough: Passthrough) -> None:
        self._settings, self._networks = settings, networks
        self._parts = HostParts(passthrough, DedicatedCpus(settings.vms_dir))

    def machine(self, vm: str, on_event: OnEvent) -> Machine:
        return Machine(vm, self._settings, self._networks, self._parts, on_event)
