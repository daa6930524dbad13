"""What is handed to QEMU when a VM starts, and what is left when it does not: with a program in QEMU's place."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
from pathlib import Path
from unittest.mock import AsyncMock, Mock

import pytest

from novacron.agent.host.networks import NodeNetworks
from novacron.agent.host.passthrough import Passthrough
from novacron.agent.settings import AgentSettings
from novacron.agent.vm.hypervisor import MachineFailed
from novacron.agent.vm.launch import StartRequest
from novacron.agent.vm.machine import QemuHypervisor
from novacron.disk.images import LocalImage
from novacron.model.node import AcceleratorKind, ImageInfo
from novacron.model.vm import VmSpec
from novacron.qemu import process
from novacron.qemu.monitor import MonitorFailed
from novacron.qemu.process import LOG, log_tail
from novacron.wire import messages as wire
from tests.waiting import until

PROGRAM = """#!/bin/sh
echo "$@" > arguments
ls /proc/self/fd > descriptors
echo "no such machine" >&2
exit 1
"""


async def test_a_qemu_that_does_not_start_says_why_and_leaves_nothing_running(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"kernel")
    settings = AgentSettings(tmp_path, tmp_path / "images", "host-a", qemu_binary=str(program))
    hypervisor = QemuHypervisor(settings, NodeNetworks(settings), Passthrough())
    ended: list[str] = []
    machine = hypervisor.machine("vm-a", lambda name, _data: ended.append(name))
    info = ImageInfo("tiny", "0" * 64, 6, "kernel")
    image = LocalImage(info, tmp_path, kernel, None, "quiet")
    assignment = wire.Assignment("vm-a", "a", VmSpec(image="tiny"), False, "", 0, None, "default", bytes(32))
    with pytest.raises(MachineFailed, match="no such machine"):
        await machine.start(StartRequest(assignment, image, AcceleratorKind.TCG, "", list, incoming=False))
    assert machine.pid is None
    assert await machine.status() == "absent"
    arguments = (machine.directory / "arguments").read_text()
    words = arguments.split()
    assert words[words.index("-name") + 1] == "guest=vm-a", "an agent of another version finds it by this word"
    assert "quiet" in arguments
    descriptors = {int(line) for line in (machine.directory / "descriptors").read_text().split()}
    assert len(descriptors - {0, 1, 2}) >= 4, "a kernel and three sockets"
    await machine.destroy()
    assert not machine.exists()


def test_a_guest_that_has_not_run_here_yet_did_not_stand_still(tmp_path: Path) -> None:
    """As one that has just started, or comes from another node: QEMU says RESUME of it, and never said STOP."""
    settings = AgentSettings(tmp_path, tmp_path / "images", "host-a")
    machine = QemuHypervisor(settings, NodeNetworks(settings), Passthrough()).machine("vm-a", lambda name, data: None)
    machine._on_event("RESUME", {})
    assert machine.stood_still_s == 0.0
    machine._on_event("STOP", {})
    machine._on_event("RESUME", {})
    assert 0.0 < machine.stood_still_s < 60.0


async def test_a_guest_that_stood_still_in_an_earlier_qemu_did_not_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = AgentSettings(tmp_path, tmp_path / "images", "host-a")
    machine = QemuHypervisor(settings, NodeNetworks(settings), Passthrough()).machine("vm-a", lambda name, data: None)
    machine._on_event("STOP", {})
    monkeypatch.setattr(machine, "_check_alone", AsyncMock())
    monkeypatch.setattr(machine, "_make_directory", AsyncMock())
    monkeypatch.setattr(machine, "_spawn", AsyncMock())
    monkeypatch.setattr(machine, "_attach", AsyncMock(side_effect=MonitorFailed("it ends")))
    monkeypatch.setattr(machine, "kill", AsyncMock())
    with pytest.raises(MachineFailed, match="it ends"):
        await machine.start(Mock(incoming=True))
    machine._on_event("RESUME", {})
    assert machine.stood_still_s == 0.0


async def test_the_exit_status_of_a_qemu_is_known_whatever_else_is_started_meanwhile(tmp_path: Path) -> None:
    pid = process.spawn(["/bin/sh", "-c", "exit 7"], tmp_path)
    until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z", "it has ended")
    gc.collect()
    await asyncio.to_thread(subprocess.run, ["true"], check=True)
    assert await process.ended(pid) == 7


def test_of_what_qemu_says_only_the_end_is_read(tmp_path: Path) -> None:
    """A guest can make it say a great deal: this file has no content but takes 1 TiB."""
    with (tmp_path / LOG).open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b" the last words\n")
    assert log_tail(tmp_path).endswith("the last words")
    (tmp_path / LOG).write_bytes(b"short\n")
    assert log_tail(tmp_path) == "short"
    (tmp_path / LOG).unlink()
    assert log_tail(tmp_path) == ""
