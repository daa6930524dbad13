"""What migrations, images that arrive and TPMs do with files is done beside the agent's loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock, Mock

import pytest

from novacron.agent.images import copies
from novacron.agent.migration import disk_mirror, post_copy, qemu_sockets, target_stream
from novacron.agent.migration.source import MigrationSource
from novacron.agent.settings import AgentSettings
from novacron.agent.vm import tpm
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.directory import INCOMING_SOCKET, OUTGOING_DISK_SOCKETS, OUTGOING_SOCKET
from novacron.agent.vm.hypervisor import VirtualMachine
from novacron.agent.vm.journal import Record
from novacron.disk.stream import VolumeInfo
from novacron.dwcp import page_ring
from novacron.dwcp.page_ring import PAGE, PageRing
from novacron.model.migration import MigrationKind
from novacron.model.node import AcceleratorKind
from novacron.qemu import firmware, mirror, process, transfer
from novacron.qemu.monitor import MonitorFailed
from novacron.wire import messages as wire
from tests.support.agent import services_in
from tests.support.loop_calls import on_loop
from tests.unit.test_loop_blocking import ASSIGNMENT, INFO
from tests.unit.test_replica_points import SIZE
from tests.unit.test_simulated_machine import SimulatedMachine
from tests.waiting import eventually

__all__ = ["on_loop"]


class Silent:
    """QEMU's end of a migration, or another node, of which nothing comes."""

    async def __call__(self, *_: object, **__: object) -> None:
        raise MonitorFailed("nothing comes")


def machine_in(directory: Path) -> VirtualMachine:
    machine = SimulatedMachine("vm-a", directory, lambda name, data: None)
    machine.home.make()
    machine.monitor, machine.pid = Mock(), 1  # type: ignore[assignment]
    return cast(VirtualMachine, machine)


async def test_the_sockets_of_a_migration_are_made_and_removed_beside_the_loop(
    tmp_path: Path, on_loop: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "receive", Silent())
    monkeypatch.setattr(mirror, "start", Silent())
    monkeypatch.setattr(mirror, "clear", AsyncMock())
    machine = machine_in(tmp_path)
    for name in (INCOMING_SOCKET, OUTGOING_SOCKET, OUTGOING_DISK_SOCKETS[0]):
        (machine.directory / name).touch()  # of an earlier agent
    on_loop.clear()
    with pytest.raises(target_stream.LoadFailed):
        await target_stream.load(Mock(machine=machine, disk=None, post_copies=False), Mock())
    async with qemu_sockets.listening(machine.home) as server:
        assert server.fileno() > 0
    part = disk_mirror.Part("disk", VolumeInfo("disk", SIZE), whole=True)
    with pytest.raises(MonitorFailed):
        await disk_mirror.Leaving(machine, Mock(send=AsyncMock()), [part]).__aenter__()
    assert list(machine.directory.glob("*.sock")) == [] and on_loop == []


async def test_a_socket_that_is_made_for_a_cancelled_migration_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, go_on, made = machine_in(tmp_path).home, threading.Event(), list[Any]()
    listen = home.listen

    def slowly(name: str) -> Any:
        assert go_on.wait(30)
        made.append(listen(name))
        return made[0]

    monkeypatch.setattr(home, "listen", slowly)
    opening = asyncio.create_task(qemu_sockets.listen(home, OUTGOING_SOCKET))
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    go_on.set()
    await eventually(lambda: bool(made) and made[0].fileno() == -1, "it is closed")


async def test_the_rest_of_a_guest_s_memory_is_awaited_beside_the_loop(
    tmp_path: Path, on_loop: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "recover", AsyncMock(side_effect=TimeoutError))
    monkeypatch.setattr(post_copy, "_interrupted", AsyncMock(side_effect=[True, False]))
    monkeypatch.setattr(post_copy, "AGAIN_S", 0.001)
    machine = machine_in(tmp_path)
    (machine.directory / INCOMING_SOCKET).touch()
    listener, settings = Mock(expect=lambda *_: contextlib.nullcontext()), services_in(tmp_path).settings
    on_loop.clear()
    await post_copy.take_rest(machine, Mock(secret="", migration="m"), listener, settings)
    assert not (machine.directory / INCOMING_SOCKET).exists() and on_loop == []


async def test_an_image_is_received_beside_the_loop(tmp_path: Path, on_loop: list[str]) -> None:
    settings = AgentSettings(tmp_path / "state", tmp_path / "images", "host-a")
    session = Mock(receive=AsyncMock(side_effect=TimeoutError("nothing comes")))
    listener = Mock(expect=lambda *_: contextlib.nullcontext(session))
    with pytest.raises(copies.CopyFailed, match="nothing comes"):
        await copies.take(listener, wire.CopyExpected("copy-1", "host-b", INFO, False), settings)
    assert list(settings.images_dir.iterdir()) == [] and on_loop == []


async def test_a_vm_that_never_ran_is_moved_from_a_directory_that_is_made_beside_the_loop(
    tmp_path: Path, on_loop: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = AsyncMock()
    monkeypatch.setattr(disk_mirror, "send_state", sent)
    services = services_in(tmp_path)
    context = VmContext("vm-a", Record(), services, lambda: None, lambda name, data: None)
    context.assignment = ASSIGNMENT
    source = MigrationSource(context, services)
    migration = Mock(task=Mock(kind=MigrationKind.LIVE))
    on_loop.clear()
    await source._send_stopped(migration, Mock(), Mock(disk=None))
    assert context.machine.directory.is_dir() and sent.await_count == 1 and on_loop == []


async def test_a_tpm_is_prepared_beside_the_loop(
    tmp_path: Path, on_loop: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "spawn", Mock(side_effect=FileNotFoundError))
    home = machine_in(tmp_path).home
    (home.path / firmware.TPM_SOCKET).touch()
    on_loop.clear()
    with pytest.raises(tpm.TpmFailed):
        await tpm.Tpm(home).start(None, AcceleratorKind.TCG, None)
    assert (home.path / firmware.TPM_STATE).is_dir() and not (home.path / firmware.TPM_SOCKET).exists()
    assert on_loop == []


def test_a_large_ring_of_pages_is_let_go_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed_in, over, real = list[str](), threading.Event(), os.close

    def close(descriptor: int) -> None:
        closed_in.append(threading.current_thread().name)
        real(descriptor)
        over.set()

    ring = PageRing(tmp_path)
    ring.append([bytes(PAGE)])
    monkeypatch.setattr(page_ring, "CLOSED_AT_ONCE_BYTES", 0)
    monkeypatch.setattr(os, "close", close)
    ring.close()
    assert over.wait(30) and closed_in == ["ring"]
