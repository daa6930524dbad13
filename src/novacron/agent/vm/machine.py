"""One VM on this host: its QEMU, its tap, its directory, put together."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from novacron.agent.actions import Action, Doing
from novacron.agent.host.networks import NodeNetworks, Wired
from novacron.agent.host.passthrough import Passthrough
from novacron.agent.settings import AgentSettings
from novacron.agent.vm import firmware_state
from novacron.agent.vm.directory import DISK_LAYER, NoAccount, VmDirectory
from novacron.disk import overlay
from novacron.disk.cloud_init import build as build_seed
from novacron.disk.images import Image
from novacron.disk.overlay import OverlayFailed
from novacron.model.cloud_init import Seed
from novacron.model.node import AcceleratorKind
from novacron.model.vm import Display, Firmware, Hardware, VmSpec, mac_address, tap_name
from novacron.net import namespace
from novacron.net.in_flight_frames import InFlightFrames
from novacron.net.tap import NetworkFailed
from novacron.qemu import block, command, confine, firmware, hotplug, process, usage
from novacron.qemu.command import QemuConfig, QemuNic, QemuVolume
from novacron.qemu.confine import Cgroup
from novacron.qemu.firmware import MACHINES
from novacron.qemu.guest import GuestAgent
from novacron.qemu.monitor import Monitor, MonitorFailed
from novacron.qemu.vfio import MEMLOCK_BESIDE_BYTES, DeviceFailed
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

SEED, WIRED, DEVICES = "seed.iso", "interfaces.json", "devices.json"
TPM_START_S, TPM_LOOK_S = 10.0, 0.02
PICTURE, PICTURE_BYTES_MAX = "display.png", 3 << 20


class MachineFailed(Exception):
    """The VM could not be started: says what QEMU or the kernel said."""


def _address_for(spec: VmSpec) -> str:
    """Return what the kernel of an image without a disk is told of its guest's addresses."""
    if spec.nics:
        return " novacron.address=dhcp"
    return f" novacron.address={spec.address}" if spec.address else ""


class Machine:
    """The process of one VM, if there is one. ``on_event`` is called for QMP events and, as ``EXIT``, at its end."""

    def __init__(
        self,
        id: str,
        settings: AgentSettings,
        networks: NodeNetworks,
        passthrough: Passthrough,
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.id = id
        self.home = VmDirectory(settings.vms_dir / id, settings.uid_base)
        self.directory = self.home.path
        self.pid: int | None = None
        self.monitor: Monitor | None = None
        self.hardware: Hardware | None = None
        """What the guest has; None: it does not run."""
        self.migration_status = ""
        """QEMU's latest word on its migration, from its events: the only one while its main loop waits for memory."""
        self.guest = GuestAgent(command.guest_path(self.directory))
        self._picturing = asyncio.Lock()
        self.copying = asyncio.Lock()
        """Held while its disk is copied or shared: by one at a time, and always before the worker's own lock."""
        self.stood_still_s = self._stopped_at = 0.0
        """For how long the guest last did."""
        self._stopped = False
        """The guest stands still, and what comes for it is kept."""
        self.kept = False
        """Its QEMU ends with this node's lease."""
        self._tpm: asyncio.Task[None] | None = None
        self.guest_listens = False
        """A guest agent has opened its port."""
        self._settings = settings
        self._cgroup = Cgroup(f"{settings.name}.{id}")
        self._tell = on_event
        self._ending: asyncio.Task[None] | None = None
        self._late: list[InFlightFrames] = []
        self._networks = networks
        self._passthrough = passthrough
        self._wired: tuple[Wired, ...] | None = None
        self._disk_bytes = 0
        """What its disk is known to have, at least."""

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        if name == "MIGRATION":
            self.migration_status = str(data["status"])
        elif name == "VSERPORT_CHANGE":
            self.guest_listens = bool(data["open"])
        elif name == "STOP":
            self._stopped_at = time.monotonic()
        elif name == "RESUME":
            self.stood_still_s = time.monotonic() - self._stopped_at
        self._tell(name, data)

    async def adopt(self) -> bool:
        """Take over the QEMU that an earlier agent left running; say whether there is one.

        What that agent was carrying is lost: its sockets are removed.
        """
        self.home.clear_sockets()
        self.pid = await asyncio.to_thread(process.find, self.directory)
        if self.pid is None:
            return False
        self.kept = process.is_kept(self.pid)
        with contextlib.suppress(OSError, ValueError):
            devices = msgspec.json.decode((self.directory / DEVICES).read_bytes(), type=tuple[str, ...])
            self._passthrough.has(self.id, devices)
        await self._attach()
        return True

    async def start(
        self, wanted: wire.Assignment, image: Image, kind: AcceleratorKind, machine: str,
        volumes: Callable[[], list[QemuVolume]], *, incoming: bool,
    ) -> str:  # fmt: skip
        """Start QEMU and return the machine type that it runs. Raises MachineFailed.

        ``volumes`` returns those that it starts with, open.

        ``machine`` empty means this QEMU's newest; its versioned name is what is returned and later replayed.
        """
        running = await asyncio.to_thread(process.find, self.directory)
        if running is not None:
            raise MachineFailed(f"QEMU {running} runs this VM already")
        try:
            uid = self.home.make()
        except (NoAccount, OSError) as error:
            raise MachineFailed(f"the VM's directory can't be made: {error}") from error
        if image.disk is not None and not self.has_disk():
            try:
                size = wanted.spec.disk_bytes(image.info.disk_bytes)
                await overlay.create(self.directory / DISK_LAYER, image.disk, size)
            except (OverlayFailed, OSError, TimeoutError) as error:
                raise MachineFailed(f"the VM's disk can't be made: {error}") from error
        try:
            machine_type = machine or MACHINES[wanted.spec.firmware]
            await self._spawn(wanted, image, kind, machine_type, uid, volumes, incoming=incoming)
        except DeviceFailed as error:
            raise MachineFailed(str(error)) from error
        except (NetworkFailed, OSError) as error:
            raise MachineFailed(f"can't start {self._settings.qemu_binary}: {error}") from error
        try:
            await self._attach()
            assert self.monitor is not None
            if incoming and wanted.hardware is not None:
                await hotplug.replay(self.monitor, wanted.hardware)
                self.hardware = await hotplug.look(self.monitor)
            return machine or await self._machine_type(self.monitor, MACHINES[wanted.spec.firmware])
        except MonitorFailed as error:
            said = process.log_tail(self.directory)
            await self.kill()
            raise MachineFailed(f"QEMU did not start: {said or error}") from error

    async def _spawn(
        self,
        wanted: wire.Assignment,
        image: Image,
        kind: AcceleratorKind,
        machine: str,
        uid: int | None,
        volumes: Callable[[], list[QemuVolume]],
        *,
        incoming: bool,
    ) -> None:
        """Start the process, with what it needs handed to it open. Raises NetworkFailed, OSError."""
        spec = wanted.spec
        hardware = wanted.hardware if incoming and wanted.hardware else None
        hardware = hardware or Hardware(spec.vcpus, spec.memory_mib, balloon=True)
        with contextlib.ExitStack() as stack:
            descriptors: list[int] = []

            def hand(descriptor: int) -> int:
                stack.callback(os.close, descriptor)
                descriptors.append(descriptor)
                return descriptor

            def listen(path: Path) -> int:
                return hand(self.home.listen(path.name).detach())

            def read(path: Path) -> int:
                return hand(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

            def boots(path: Path | None) -> Path | None:
                return None if path is None else confine.inherited_path(read(path))

            self.home.give(command.console_log_path(self.directory).name)
            if image.disk is not None:
                self.home.give(DISK_LAYER)
            nics = [QemuNic(mac_address(self.id), None)]
            wired = self._wired_to(await self._where_wired(wanted.spec))
            if wired:
                nics = []
                for one in wired:
                    mtu, descriptor = await asyncio.to_thread(one.create)
                    nics.append(QemuNic(one.mac, one.tap, mtu, hand(descriptor)))
            seed = None
            if image.kernel is None or wanted.seed is not None:
                path = self.directory / SEED
                await asyncio.to_thread(
                    build_seed,
                    path,
                    wanted.seed or Seed(),
                    id=self.id,
                    name=wanted.name,
                    macs=[nic.mac for nic in nics],
                    address=spec.address,
                )
                seed = read(path)
            attached = await asyncio.to_thread(volumes)
            for volume in attached:
                hand(volume.descriptor)
            if wanted.firmware_state is not None:
                try:
                    await asyncio.to_thread(firmware_state.unpack, self.home, spec, wanted.firmware_state)
                except firmware_state.BadState as error:
                    raise MachineFailed(str(error)) from error
            code = await asyncio.to_thread(self._have_nvram, spec.firmware)
            if spec.tpm:
                await self._start_tpm(uid, kind)
            config = QemuConfig(
                id=self.id,
                directory=Path(),
                vcpus=hardware.vcpus,
                memory_mib=hardware.memory_mib,
                vcpus_max=spec.vcpus_max,
                memory_max_mib=spec.memory_max_mib,
                machine=machine,
                accelerator=kind,
                kernel=boots(image.kernel),
                initrd=boots(image.initrd),
                cmdline=image.cmdline + _address_for(spec),
                nics=tuple(nics),
                disk=None if image.disk is None else Path(DISK_LAYER),
                binary=self._settings.qemu_binary,
                monitor=listen(command.monitor_path(self.directory)),
                console=listen(command.console_path(self.directory)),
                guest=listen(command.guest_path(self.directory)),
                firmware=None if code is None else read(code),
                secure=spec.firmware is Firmware.UEFI_SECURE,
                tpm=spec.tpm,
                cpu=wanted.cpu,
                devices=await asyncio.to_thread(self._take_devices, wanted, uid),
                balloon=hardware.balloon,
                display=spec.display is not Display.NONE,
                seed=seed,
                below=None if image.disk is None else read(image.disk),
                volumes=tuple(attached),
                shared=() if image.disk is None else tuple(read(path) for path in self.home.shared()),
            )
            arguments = command.command(config, incoming=incoming)
            kept = spec.ha
            if uid is not None:
                locks = (spec.memory_mib << 20) + MEMLOCK_BESIDE_BYTES if spec.devices else None
                arguments = confine.confined(
                    arguments, confine.account(uid, kind), dies_with_parent=kept, memlock_bytes=locks
                )
            lease = self._settings.lease_path if kept else None
            self.pid = process.spawn(arguments, self.directory, descriptors, lease=lease)
            self.kept = kept
        self._bound(spec, kind)

    def _bound(self, spec: VmSpec, kind: AcceleratorKind) -> None:
        """Limit what QEMU uses of this host."""
        assert self.pid is not None
        try:
            self._cgroup.place(self.pid, spec.vcpus, spec.memory_mib, kind)
        except OSError as error:
            if self.home.uid() is not None:
                log.warning("a VM has no limits on what it uses of this host", vm=self.id, error=str(error))

    def bound_io(self, bytes_per_s: int | None, iops: int | None) -> None:
        """Bound what QEMU reads and writes in a second, whatever its guest has made of it."""
        try:
            self._cgroup.bound_io(self.directory, bytes_per_s, iops)
        except OSError as error:
            log.info("this host gives a VM no limits of reads and writes", vm=self.id, error=str(error))

    def charged(self) -> list[tuple[str, float]]:
        """Return what its cgroup counts, as far as this host has one for it."""
        found: list[tuple[str, float]] = []
        with contextlib.suppress(OSError, KeyError, ValueError):
            found.append(("novacron_vm_memory_charged_bytes", self._cgroup.charged_bytes()))
            found.append(("novacron_vm_cpu_throttled_seconds_total", self._cgroup.throttled_s()))
        return found

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

    def _have_nvram(self, firmware_: Firmware) -> Path | None:
        """Return the code of the VM's firmware, None for a BIOS, and see to its variables. Raises MachineFailed."""
        if firmware_ is Firmware.BIOS:
            return None
        found = firmware.files(firmware_)
        if found is None:
            raise MachineFailed(f"this node has no firmware {firmware_}: apt-get install {firmware.PACKAGE}")
        path = self.directory / firmware.NVRAM
        if not path.exists():
            scratch = path.with_suffix(".new")
            shutil.copyfile(found[1], scratch)
            scratch.rename(path)
        self.home.give(firmware.NVRAM)
        return found[0]

    async def _start_tpm(self, uid: int | None, kind: AcceleratorKind) -> None:
        """Start the VM's TPM, which ends with its QEMU. Raises MachineFailed, OSError."""
        await self._end_companions()
        self.home.give_directory(firmware.TPM_STATE)
        path = self.directory / firmware.TPM_SOCKET
        path.unlink(missing_ok=True)
        arguments = firmware.tpm_command()
        if uid is not None:
            arguments = confine.confined(arguments, confine.account(uid, kind))
        try:
            pid = process.spawn(arguments, self.directory, log="tpm.log")
        except FileNotFoundError:
            raise MachineFailed("this node has no TPM for VMs: apt-get install swtpm") from None
        self._tpm = asyncio.create_task(process.reaped(pid))
        for _ in range(int(TPM_START_S / TPM_LOOK_S)):
            if path.exists():
                return
            if self._tpm.done():
                break
            await asyncio.sleep(TPM_LOOK_S)
        said = (self.directory / "tpm.log").read_text(errors="replace")[-300:].strip()
        raise MachineFailed(f"the VM's TPM did not start: {said or 'it does not answer'}")

    async def _end_companions(self) -> None:
        for pid in await asyncio.to_thread(process.companions, self.directory):
            await process.kill(pid)

    async def _attach(self) -> None:
        pid = self.pid
        assert pid is not None
        self.migration_status, self._disk_bytes = "", 0
        self._ending = asyncio.create_task(self._watch(pid))
        await self._connect()

    async def _connect(self) -> None:
        self.monitor = await Monitor.connect(
            command.monitor_path(self.directory), self._on_event, lambda: self.pid is not None
        )
        self.hardware = await hotplug.look(self.monitor)
        if self.hardware.balloon:
            await usage.watch_balloon(self.monitor)
        ports = await self.monitor.execute("query-chardev")
        self.guest_listens = any(port["label"] == "guest0" and port["frontend-open"] for port in ports)

    async def _watch(self, pid: int) -> None:
        await process.ended(pid)
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

    async def execute(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
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
            self.home.give(PICTURE)
            await self.execute("screendump", {"filename": PICTURE, "format": "png"})
            with (self.directory / PICTURE).open("rb") as file:
                picture = file.read(PICTURE_BYTES_MAX + 1)
            (self.directory / PICTURE).unlink()
        if not picture.startswith(b"\x89PNG") or len(picture) > PICTURE_BYTES_MAX:
            raise OSError("QEMU made no picture of a reasonable size")
        return picture

    async def detach(self) -> None:
        """Let go of QEMU without touching it."""
        if self._ending is not None:
            self._ending.cancel()
            await asyncio.gather(self._ending, return_exceptions=True)
            self._ending = None
        if self.monitor is not None:
            await self.monitor.close()
            self.monitor = None

    async def kill(self) -> None:
        """End QEMU at once, and take its tap away."""
        pid = self.pid or await asyncio.to_thread(process.find, self.directory)
        await self.detach()
        if pid is not None:
            await process.kill(pid)
        self.pid = None
        await self._end_companions()
        try:
            self._cgroup.remove()
        except OSError as error:
            log.warning("a VM's cgroup stays", vm=self.id, error=str(error))
        for one in self.wired:
            await asyncio.to_thread(one.delete)
        await asyncio.to_thread(self._passthrough.leave, self.id)

    def _take_devices(self, wanted: wire.Assignment, uid: int | None) -> tuple[str, ...]:
        """Take the devices of this host that a VM has. Raises DeviceFailed, OSError."""
        if not wanted.spec.devices:
            return ()
        found = self._passthrough.choose(self.id, wanted.spec.devices, wanted.passthrough)
        (self.directory / DEVICES).write_bytes(msgspec.json.encode(found))
        self._passthrough.vfio.bind(found, uid)
        return found

    def exists(self) -> bool:
        """Say whether anything of the VM is here."""
        return self.directory.exists()

    def has_disk(self) -> bool:
        return (self.directory / DISK_LAYER).exists()

    @property
    def wired(self) -> tuple[Wired, ...]:
        """Its interfaces on this host, as they were noted when it was started."""
        if self._wired is None:
            bridge = self._settings.bridge  # before they were noted, all were on it
            self._wired = () if bridge is None else (Wired(tap_name(self.id), mac_address(self.id), bridge),)
            with contextlib.suppress(OSError, ValueError):
                self._wired = msgspec.json.decode((self.directory / WIRED).read_bytes(), type=tuple[Wired, ...])
        return self._wired

    def _wired_to(self, wired: tuple[Wired, ...]) -> tuple[Wired, ...]:
        """Note a VM's interfaces before they are made: who comes later can take them away."""
        (self.directory / WIRED).write_bytes(msgspec.json.encode(wired))
        self._wired = wired
        return wired

    async def _where_wired(self, spec: VmSpec) -> tuple[Wired, ...]:
        """Return where its interfaces belong. Raises NetworkFailed."""
        if spec.nics:
            return tuple([await self._networks.wire(self.id, n, nic.network) for n, nic in enumerate(spec.nics)])
        if self._settings.bridge is not None:
            return (Wired(tap_name(self.id), mac_address(self.id), self._settings.bridge),)
        return ()

    def expect_late_frames(self) -> None:
        """The guest may stop at any moment, and that be noticed late: keep what comes for it just now.

        Raises NetworkFailed.
        """
        if self._stopped:
            return
        self._listen_late()
        for one in self._late:
            one.forget_old()

    def keep_late_frames(self) -> None:
        """The guest stands still for good, as far as this host goes: keep what comes for it. Raises NetworkFailed."""
        if self._stopped:
            self.drop_late_frames()
        self._stopped = True
        self._listen_late()

    def _listen_late(self) -> None:
        if not self._late:
            self._late = [namespace.within(one.netns, functools.partial(InFlightFrames, one.tap)) for one in self.wired]

    def drop_late_frames(self) -> None:
        """The guest goes on here: its tap has what came meanwhile."""
        self._stopped = False
        for one in self._late:
            one.close()
        self._late = []

    async def leave(self) -> None:
        """The VM runs elsewhere now: cut its tap off, and send after it what came late. Its QEMU stays, paused."""
        for one in self.wired:
            await asyncio.to_thread(one.detach)
        try:
            for one, late in zip(self.wired, self._late, strict=False):
                count = namespace.within(one.netns, functools.partial(late.send_after, one.bridge, one.mac))
                log.info("late frames were sent after the guest", vm=self.id, frames=count)
        except NetworkFailed as error:
            # Their senders will repeat them; the VM has to go all the same.
            log.warning("late frames are lost", vm=self.id, error=str(error))
        finally:
            self.drop_late_frames()

    async def destroy(self) -> None:
        """End QEMU and remove every trace of the VM from this host."""
        await self.kill()
        self.drop_late_frames()
        await asyncio.to_thread(self.home.remove)
