"""What systemd is told: over a real socket, as sd_notify(3) says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from novacron import service_manager


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def test_states_are_told(manager: socket.socket) -> None:
    service_manager.tell(service_manager.READY)
    service_manager.tell(service_manager.STOPPING)
    assert [manager.recv(64), manager.recv(64)] == [b"READY=1", b"STOPPING=1"]


def test_an_abstract_socket_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"novacron-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        listening.settimeout(30)
        service_manager.tell(service_manager.READY)
        assert listening.recv(64) == b"READY=1"


async def test_signs_of_life_come_while_the_loop_runs(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    alive = asyncio.create_task(service_manager.keep_alive())
    try:
        assert [await asyncio.to_thread(manager.recv, 64) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    finally:
        alive.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await alive


@pytest.mark.parametrize(("usec", "pid"), [(None, None), ("0", None), ("x", None), ("3000", "1")])
def test_there_is_no_watchdog_unless_it_is_ours(
    usec: str | None, pid: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert service_manager.watchdog_s() is None


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/notify"])
def test_without_a_manager_nothing_happens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    service_manager.tell(service_manager.READY)
