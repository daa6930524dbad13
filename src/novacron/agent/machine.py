"""One VM on this host: its QEMU, its tap, its directory, put together."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from novacron.agent.settings import Settings
from novacron.disk import overlay
from novacron.disk.images import Image
from novacron.disk.overlay import OverlayFailed
from novacron.model.node import AcceleratorKind
from novacron.model.vm import VmSpec, mac_address, tap_name
from novacron.net import tap
from novacron.net.late import LateFrames
from novacron.net.tap import NetworkFailed
from novacron.qemu import command, process
from novacron.qemu.command import Config, Nic
from novacron.qemu.monitor import Monitor, MonitorFailed
from novacron.telemetry import logs

log = logs.get(__name__)

CONSOLE_LOG_BYTES_MAX = 4 * 1024 * 1024
INCOMING_SOCKET = "incoming.sock"
OUTGOING_SOCKET = "outgoing.sock"
DISK_SOCKET = "disk.sock"
DISK_LAYER = "disk.qcow2"
"""What the VM wrote to its disk, over the disk of its image."""


class MachineFailed(Exception):
    """The VM could not be started: says what QEMU or the kernel said."""


class Machine:
    """The process of one VM, if there is one. ``on_event`` is called for QMP events and, as ``EXIT``, at its end."""

    def __init__(self, id: str, settings: Settings, on_event: Callable[[str, dict[str, Any]], None]) -> None:
        self.id = id
        self.directory = settings.vms_dir / id
        self.pid: int | None = None
        self.monitor: Monitor | None = None
        self.migration_status = ""
        """QEMU's latest word on its migration, from its events: the only one while its main loop waits for memory."""
        self._settings = settings
        self._tell = on_event
        self._ending: asyncio.Task[None] | None = None
        self._late: LateFrames | None = None

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        if name == "MIGRATION":
            self.migration_status = str(data["status"])
        self._tell(name, data)

    async def adopt(self) -> bool:
        """Take over the QEMU that an earlier agent left running; say whether there is one.

        What that agent was carrying is lost: its sockets are removed.
        """
        for name in (INCOMING_SOCKET, OUTGOING_SOCKET, DISK_SOCKET):
            (self.directory / name).unlink(missing_ok=True)
        self.pid = await asyncio.to_thread(process.find, self.directory)
        if self.pid is None:
            return False
        await self._attach()
        return True

    async def start(self, spec: VmSpec, image: Image, kind: AcceleratorKind, machine: str, *, incoming: bool) -> str:
        """Start QEMU and return the machine type that it runs. Raises MachineFailed.

        ``machine`` empty means this QEMU's newest; its versioned name is what is returned and later replayed.
        """
        running = await asyncio.to_thread(process.find, self.directory)
        if running is not None:
            raise MachineFailed(f"QEMU {running} runs this VM already")
        self.directory.mkdir(parents=True, exist_ok=True)
        for leftover in (command.monitor_path(self.directory), command.console_path(self.directory)):
            leftover.unlink(missing_ok=True)
        disk = None
        if image.disk is not None:
            disk = self.directory / DISK_LAYER
            if not disk.exists():
                try:
                    await overlay.create(disk, image.disk)
                except (OverlayFailed, OSError, TimeoutError) as error:
                    raise MachineFailed(f"the VM's disk can't be made: {error}") from error
        mac = mac_address(self.id)
        nic = Nic(mac, None)
        if self._settings.bridge is not None:
            name = tap_name(self.id)
            try:
                mtu = await asyncio.to_thread(tap.create, name, self._settings.bridge, mac)
            except NetworkFailed as error:
                raise MachineFailed(str(error)) from error
            nic = Nic(mac, name, mtu)
        address = f" novacron.address={spec.address}" if spec.address else ""
        config = Config(
            id=self.id,
            directory=self.directory,
            vcpus=spec.vcpus,
            memory_mib=spec.memory_mib,
            machine=machine or command.DEFAULT_MACHINE,
            accelerator=kind,
            kernel=image.kernel,
            initrd=image.initrd,
            cmdline=image.cmdline + address,
            nic=nic,
            disk=disk,
            binary=self._settings.qemu_binary,
        )
        try:
            self.pid = process.spawn(command.command(config, incoming=incoming), self.directory)
        except OSError as error:
            raise MachineFailed(f"can't start {config.binary}: {error}") from error
        try:
            await self._attach()
            assert self.monitor is not None
            return machine or await self._machine_type(self.monitor)
        except MonitorFailed as error:
            said = process.log_tail(self.directory)
            await self.kill()
            raise MachineFailed(f"QEMU did not start: {said or error}") from error

    async def _machine_type(self, monitor: Monitor) -> str:
        for machine in await monitor.execute("query-machines"):
            if machine.get("alias") == command.DEFAULT_MACHINE:
                return str(machine["name"])
        return command.DEFAULT_MACHINE

    async def _attach(self) -> None:
        pid = self.pid
        assert pid is not None
        self.migration_status = ""
        self._ending = asyncio.create_task(self._watch(pid))
        await self._connect()

    async def _connect(self) -> None:
        self.monitor = await Monitor.connect(
            command.monitor_path(self.directory), self._on_event, lambda: self.pid is not None
        )

    async def _watch(self, pid: int) -> None:
        await process.ended(pid)
        self.pid = None
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

    def last_words(self) -> str:
        return process.log_tail(self.directory)

    def bound_console_log(self) -> None:
        """Empty the console's log when the guest has written too much: QEMU appends, so this loses nothing new."""
        path = command.console_log_path(self.directory)
        if path.exists() and path.stat().st_size > CONSOLE_LOG_BYTES_MAX:
            with path.open("r+b") as file:
                file.truncate(0)

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
        if self._settings.bridge is not None:
            await asyncio.to_thread(tap.delete, tap_name(self.id))

    def keep_late_frames(self) -> None:
        """The guest stands still for good, as far as this host goes: keep what comes for it. Raises NetworkFailed."""
        self.drop_late_frames()
        if self._settings.bridge is not None:
            self._late = LateFrames(tap_name(self.id))

    def drop_late_frames(self) -> None:
        """The guest goes on here: its tap has what came meanwhile."""
        if self._late is not None:
            self._late.close()
            self._late = None

    async def leave(self) -> None:
        """The VM runs elsewhere now: cut its tap off, and send after it what came late. Its QEMU stays, paused."""
        if self._settings.bridge is not None:
            await asyncio.to_thread(tap.detach, tap_name(self.id))
        try:
            if self._late is not None and self._settings.bridge is not None:
                count = self._late.send_after(self._settings.bridge, mac_address(self.id))
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
        await asyncio.to_thread(_remove, self.directory)


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
