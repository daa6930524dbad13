"""A disk that waits for its VM, in a real QEMU."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from novacron.disk import overlay
from novacron.disk.images import scan
from novacron.disk.nbd import NbdClient
from novacron.model.node import AcceleratorKind
from novacron.qemu import mirror
from novacron.qemu.command import DISK, QemuConfig, command, monitor_path
from novacron.qemu.monitor import Monitor
from novacron.qemu.nics import QemuNic

PAGE = 4096


async def test_writes_reach_the_layer_and_qemu_reports_whether_more_can_come(images: Path, tmp_path: Path) -> None:
    """A restarted agent asks that before it promises: memory may be there before the disk is."""
    image = scan(images)[0]["disk"]
    assert image.disk is not None
    layer, data = tmp_path / "disk.qcow2", os.urandom(4 * PAGE)
    await overlay.create(layer, image.disk, image.info.disk_bytes, None)
    config = QemuConfig(
        "waits", tmp_path, 1, 128, "pc", AcceleratorKind.TCG, image.kernel, image.initrd, image.cmdline,
        (QemuNic("52:54:00:00:00:02", None),), layer,
    )  # fmt: skip
    process = subprocess.Popen(command(config, incoming=True))  # noqa: ASYNC220
    monitor = await Monitor.connect(monitor_path(tmp_path), lambda *_: None, lambda: process.poll() is None)
    try:
        await mirror.serve(monitor, tmp_path / "disk.sock", [DISK])
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(tmp_path / "disk.sock"))
        client = NbdClient(connection, DISK)
        assert client.size_bytes == image.info.disk_bytes
        client.write(PAGE, data)
        client.flush()
        client.close()
        await mirror.close(monitor)
    finally:
        await monitor.close()
        process.kill()
        process.wait()
    whole = tmp_path / "whole"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(layer), str(whole)], check=True)  # noqa: ASYNC221
    before = image.disk.read_bytes()
    assert whole.read_bytes() == before[:PAGE] + data + before[5 * PAGE :]
