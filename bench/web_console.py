"""From a key in a console of the web UI to its echo, over a WAN: a part of ``script/bench web``."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, expect

from bench import web_page
from bench.report import Figure, median
from lab.guest import ECHO_PORT
from lab.hosts import Host, Wan
from lab.platform import Platform
from lab.ports import free_ports
from lab.relay import join

WAN = Wan(loss=0.0)
ADDRESS = "198.19.0.10"
OVER_RTT_MS = 20.0
BOOT_MS = 120_000
KEYS = "abcdefghijklmnopqrstuvwxyz"
LINE_MAX = 60
TCP_S_MAX = 30.0


def console_figures(p: Platform, directory: Path, keys: int) -> list[Figure]:
    """Type into a guest whose host the browser reaches over the WAN, as it reaches the server."""
    near, far = p.lab.hosts
    web_page.make_user(p.client)
    vm = p.client.create_vm(name="console", image="tiny", memory_mib=128, node=far.name, address=f"{ADDRESS}/24")
    chromium = directory / "chromium"
    chromium.write_text(f'#!/bin/sh\nexec {" ".join(near.enter)} {web_page.CHROMIUM} "$@"\n')
    chromium.chmod(0o755)
    with _reachable(far, p.ports[0]) as port, web_page.opened(f"https://{far.address}:{port}", chromium) as web:
        with web.context() as context:
            page = context.new_page()
            web_page.log_in(page, "console")
            page.goto(f"/ui/vms/{vm['id']}")
            echoes = _type(page, keys)
        tcp = _tcp_echoes(near, keys)
    rtt_ms = p.lab.wan.rtt_ms
    p95 = statistics.quantiles(echoes, n=20)[18]
    return [
        Figure(f"console over a WAN of {rtt_ms:.0f} ms: key to echo, p95 (of {keys})", p95, "ms", rtt_ms + OVER_RTT_MS),
        median("  ... median", echoes, "ms"),
        median("  ... a byte to the same guest and back, over TCP", tcp, "ms"),
    ]


@contextlib.contextmanager
def _reachable(host: Host, port: int) -> Iterator[int]:
    """Let other hosts reach a port of this machine at a host's address; yield the port there."""
    shown = free_ports(1)[0]
    listener = host.within(lambda: socket.create_server((host.address, shown)))
    loop = asyncio.new_event_loop()
    ended = asyncio.Event()

    async def serve() -> None:
        server = await asyncio.start_server(functools.partial(join, port), sock=listener)
        await ended.wait()
        server.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield shown
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


def _type(page: Page, keys: int) -> list[float]:
    page.get_by_role("button", name="Open the serial console").click()
    terminal = page.get_by_test_id("terminal")
    expect(terminal).to_contain_text("tiny guest: ready", timeout=BOOT_MS)
    page.keyboard.press("Enter")
    page.keyboard.type("echo $((6*7))7")
    page.keyboard.press("Enter")
    expect(terminal).to_contain_text("427")
    took_ms = []
    for number in range(keys):
        if number % LINE_MAX == LINE_MAX - 1:
            page.keyboard.press("Control+u")
            expect(terminal.locator(".xterm-rows")).not_to_contain_text(KEYS[:4])
        page.evaluate("window.ncEchoed()")
        page.keyboard.press(KEYS[number % len(KEYS)])
        took_ms.append(web_page.measured(page))
    return took_ms


def _tcp_echoes(host: Host, count: int) -> list[float]:
    """Send a byte to the guest, as SSH would a key, and wait for it."""
    connection = host.within(lambda: socket.create_connection((ADDRESS, ECHO_PORT), timeout=TCP_S_MAX))
    took_ms = []
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            began = time.perf_counter()
            connection.sendall(b"x\n")
            connection.recv(16)
            took_ms.append(1e3 * (time.perf_counter() - began))
    return took_ms
