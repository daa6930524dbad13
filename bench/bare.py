"""The peer: QEMU without NovaCron, with the same guest, on the same hosts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from lab.hosts import BRIDGE, GUEST_MTU, Host, run
from novacron.disk.images import scan
from novacron.model.node import AcceleratorKind
from novacron.qemu.command import DISK, QemuConfig, command, console_log_path, monitor_path
from novacron.qemu.monitor import Monitor
from novacron.qemu.nics import QemuNic

FIRST_LINE = "tiny guest: up"
BOOT_TIMEOUT_S = 60.0
MIGRATE_TIMEOUT_S = 120.0
TAP = "bare0"
PORT = 7500
CHANNELS = 4
BANDWIDTH_BYTES_PER_S = 10_000_000_000
DOWNTIME_LIMIT_MS = 300
"""QEMU's own default."""


def first_line_at(log: Path, since: float) -> float:
    """Wait for the guest's first console line; return how many seconds after ``since`` (monotonic) it came."""
    while time.monotonic() < since + BOOT_TIMEOUT_S:
        with contextlib.suppress(FileNotFoundError):
            if FIRST_LINE in log.read_text(errors="replace"):
                return time.monotonic() - since
        time.sleep(0.002)
    raise TimeoutError(f"no first line in {log}")


class Bare:
    """One QEMU on a host, with the arguments that NovaCron would give it."""

    def __init__(
        self, directory: Path, images: Path, host: Host, memory_mib: int, address: str | None, image: str = "tiny"
    ) -> None:
        self.directory = directory
        self.host = host
        shutil.rmtree(directory, ignore_errors=True)
        (directory / "run").mkdir(parents=True)
        image_ = scan(images)[0][image]
        self.image_disk = image_.disk
        self._tap = TAP if address is not None else None
        self.config = QemuConfig(
            id="bare", directory=directory, vcpus=1, memory_mib=memory_mib, machine="pc",
            accelerator=AcceleratorKind.TCG, kernel=image_.kernel, initrd=image_.initrd,
            cmdline=image_.cmdline + (f" novacron.address={address}" if address else ""),
            nics=(QemuNic("52:54:00:ba:5e:00", self._tap, GUEST_MTU if self._tap else None),),
            disk=None if image_.disk is None else directory / "disk.qcow2",
            display=True,
        )  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def make_disk(self, *, over_image: bool) -> None:
        """Make the guest's disk: a layer over its image's, or an empty one of the same size."""
        below = ["-F", "raw", "-b", str(self.image_disk)] if over_image else []
        size = [] if over_image or self.image_disk is None else [str(self.image_disk.stat().st_size)]
        run("qemu-img", "create", "-q", "-f", "qcow2", *below, str(self.config.disk), *size)

    def start(self, *, incoming: bool = False) -> None:
        if self._tap is not None:
            netns = str(self.host.netns)
            run("ip", "-n", netns, "tuntap", "add", self._tap, "mode", "tap")
            run("ip", "-n", netns, "link", "set", self._tap, "address", "fe:54:00:ba:5e:00", "mtu", str(GUEST_MTU))
            run("ip", "-n", netns, "link", "set", self._tap, "master", BRIDGE, "up")
        arguments = command(self.config, incoming=incoming)
        if self.config.disk is None:  # else the disk's export must be closed before the guest runs
            arguments = [argument for argument in arguments if argument != "-S"]
        self.process = subprocess.Popen(
            [*self.host.prefix, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def until_first_line(self, since: float) -> float:
        return first_line_at(console_log_path(self.directory), since)

    def until_ready(self) -> None:
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while "tiny guest: ready" not in console_log_path(self.directory).read_text(errors="replace"):
            if time.monotonic() > deadline:
                raise TimeoutError("the bare guest does not boot")
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self._tap is not None:
            run("ip", "-n", str(self.host.netns), "link", "del", self._tap)


MODES: dict[str, tuple[tuple[str, ...], str]] = {
    "plain": ((), "none"),
    "xbzrle": (("xbzrle",), "none"),
    "multifd": (("multifd",), "none"),
    "multifd, zlib": (("multifd",), "zlib"),
    "multifd, zstd": (("multifd",), "zstd"),
}
"""QEMU's own ways to migrate: capabilities, and how several connections compress."""


async def migrate(
    source: Bare,
    target: Bare,
    mode: str = "multifd, zstd",
    timeout_s: float = MIGRATE_TIMEOUT_S,
    mirror: str | None = None,
) -> float:
    """Migrate with one of QEMU's own ways over the WAN; return the seconds from the command to its end.

    ``mirror`` mirrors the disk first, over NBD: ``full``, or ``top`` for the guest's own layer alone.
    """
    enabled, compression = MODES[mode]
    if mirror is not None:
        enabled = (*enabled, "pause-before-switchover")
    monitors: list[Monitor] = []
    ended, arrived, paused, mirrored = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()

    def on_event(name: str, data: dict[str, Any]) -> None:
        if name == "MIGRATION" and data.get("status") in ("completed", "failed"):
            ended.set()
        if name == "MIGRATION" and data.get("status") == "pre-switchover":
            paused.set()
        if name in ("BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"):
            mirrored.set()

    def on_target_event(name: str, data: dict[str, Any]) -> None:
        if name == "MIGRATION" and data.get("status") in ("completed", "failed"):
            arrived.set()

    for bare, hear in ((source, on_event), (target, on_target_event)):
        monitors.append(await Monitor.connect(monitor_path(bare.directory), hear, lambda: True))
    try:
        for monitor in monitors:
            capabilities = [{"capability": name, "state": True} for name in ("events", *enabled)]
            await monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})
            await monitor.execute(
                "migrate-set-parameters",
                {"multifd-channels": CHANNELS, "multifd-compression": compression,
                 "max-bandwidth": BANDWIDTH_BYTES_PER_S, "downtime-limit": DOWNTIME_LIMIT_MS},
            )  # fmt: skip
        uri = f"tcp:{target.host.address}:{PORT}"
        await monitors[1].execute("migrate-incoming", {"uri": uri})
        started = time.monotonic()
        if mirror is not None:
            await _mirror(monitors[0], monitors[1], target.host.address, mirror)
            await asyncio.wait_for(mirrored.wait(), timeout_s)
            mirrored.clear()
        await monitors[0].execute("migrate", {"uri": uri})
        if mirror is not None:
            await asyncio.wait_for(paused.wait(), timeout_s)
            await monitors[0].execute("block-job-cancel", {"device": "mirror"})
            await asyncio.wait_for(mirrored.wait(), timeout_s)
            await monitors[0].execute("migrate-continue", {"state": "pre-switchover"})
        await asyncio.wait_for(ended.wait(), timeout_s)
        if mirror is not None:
            await monitors[1].execute("nbd-server-stop")
            await monitors[1].execute("cont")
        total_s = time.monotonic() - started
        status = await monitors[0].execute("query-migrate")
        if status["status"] != "completed":
            raise RuntimeError(f"QEMU's own migration {status['status']}: {status.get('error-desc')}")
        await asyncio.wait_for(arrived.wait(), timeout_s)  # what its threads used is known when they have ended
        return total_s
    finally:
        for monitor in monitors:
            await monitor.close()


async def _mirror(source: Monitor, target: Monitor, address: str, sync: str) -> None:
    """Let QEMU mirror the source's disk to the target's, as management tools do."""
    server = {"host": address, "port": str(PORT + 1)}
    await target.execute("nbd-server-start", {"addr": {"type": "inet", "data": server}})
    export = {"type": "nbd", "id": DISK, "node-name": DISK, "name": DISK, "writable": True}
    await target.execute("block-export-add", export)
    inet = {"type": "inet", **server}
    await source.execute("blockdev-add", {"driver": "nbd", "node-name": "there", "server": inet, "export": DISK})
    job = {"job-id": "mirror", "device": DISK, "target": "there", "sync": sync}
    await source.execute("blockdev-mirror", job)
