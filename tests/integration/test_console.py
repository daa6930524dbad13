"""Consoles: the serial line in a terminal, the display for VNC viewers, the stored log, and screenshots."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lab.platform import Platform, until
from novacron.client.console import Console, ConsoleEnded
from tests.integration.conftest import Api
from tests.support.vms import wait_until_booted
from tests.waiting import pause

NewVm = Callable[..., dict[str, Any]]


def opened(site: Platform, ticket: dict[str, Any]) -> Console:
    config = site.client.config
    return Console(config.url.replace("https://", "wss://") + ticket["path"], config.ca)


def why_closed(site: Platform, ticket: dict[str, Any]) -> str:
    with opened(site, ticket) as console, pytest.raises(ConsoleEnded) as closed:
        console.recv(10)
    return str(closed.value)


class Terminal:
    """``novacron vm console`` at a pseudo-terminal."""

    def __init__(self, vm: str) -> None:
        self.master, slave = pty.openpty()
        self.seen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "novacron", "vm", "console", vm], stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)

    def until_saw(self, text: bytes) -> None:
        def saw() -> bool:
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 4096)
            return text in self.seen

        try:
            until(saw, f"the terminal shows {text!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it shows {self.seen!r}") from None

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)


def test_the_console_is_a_terminal_with_escape_keys_and_a_size(site: Platform, new_vm: NewVm) -> None:
    vm = new_vm()
    wait_until_booted(site, vm)
    terminal = Terminal(vm["name"])
    terminal.until_saw(b"press Ctrl-] q to leave")
    pause(0.2)
    terminal.type(b"\recho $((6*7))\r")
    terminal.until_saw(b"42")
    terminal.type(b"\x1d?")
    terminal.until_saw(b"send Ctrl-] to the guest")
    fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    terminal.type(b"\x1ds")
    terminal.until_saw(b"stty rows 33 cols 111")
    fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 122, 0, 0))
    os.killpg(terminal.process.pid, signal.SIGWINCH)
    terminal.until_saw(b"stty rows 44 cols 122")
    terminal.type(b"\x1dq")
    assert terminal.process.wait(10) == 0
    os.close(terminal.master)


def test_a_ticket_opens_one_console_once(site: Platform, api: Api, new_vm: NewVm) -> None:
    vm = new_vm()
    wait_until_booted(site, vm)
    revoked = site.client.create_token("revoked")
    ticket = api("POST", f"/api/v1/vms/{vm['id']}/actions/open-console", token=revoked["secret"]).body
    with opened(site, ticket) as console:
        console.send(b"\recho $((6*7))\r")
        seen = b""
        while b"42" not in seen:
            seen += console.recv(10)
        site.client.delete("tokens", revoked["id"])
        with pytest.raises(ConsoleEnded, match="token or session has ended"):
            for _ in range(100):
                console.recv(30)
    assert "wrong, was used or has expired" in why_closed(site, ticket)
    for forged in ("", "nvt_x", ticket["ticket"][:-1], site.client.config.token):
        assert "ticket" in why_closed(site, {"path": f"/api/v1/console?ticket={forged}"})
    assert api("POST", f"/api/v1/vms/{vm['id']}/actions/open-console", {"kind": "x"}).problem["field"] == "kind"
    assert api("POST", f"/api/v1/vms/{vm['id']}/actions/open-console", token="nva_x").status == 401
    assert ticket["ticket"] not in site.server.log.read_text()


def test_the_display_is_available_to_a_vnc_viewer_and_as_a_screenshot(
    site: Platform, new_vm: NewVm, tmp_path: Path
) -> None:
    vm = new_vm()
    wait_until_booted(site, vm)
    serving = subprocess.Popen(
        [sys.executable, "-m", "novacron", "vm", "display", vm["name"]], stdout=subprocess.PIPE, text=True
    )
    try:
        assert serving.stdout is not None
        port = int(serving.stdout.readline().split("127.0.0.1:")[1].split(";")[0])
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port), 10) as viewer:
                viewer.settimeout(10)
                assert viewer.recv(12) == b"RFB 003.008\n"
                viewer.sendall(b"RFB 003.008\n")
                assert viewer.recv(2) == b"\x01\x01", "no password: the ticket was one"
                viewer.sendall(b"\x01")
                assert viewer.recv(4) == bytes(4)
                viewer.sendall(b"\x01")
                width, height = struct.unpack("!HH", viewer.recv(4))
                assert width >= 640 and height >= 400
    finally:
        serving.terminate()  # not SIGINT: who runs us may have it ignored
        serving.communicate(timeout=10)
    file = tmp_path / "picture.png"
    site.cli("vm", "screenshot", vm["name"], str(file))
    assert file.stat().st_mode & 0o077 == 0
    data = file.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and struct.unpack("!II", data[16:24]) == (width, height)
    length = struct.unpack("!I", data[8:12])[0]
    assert zlib.crc32(data[12 : 16 + length]) == struct.unpack("!I", data[16 + length : 20 + length])[0]


def test_a_vm_without_a_display_says_so(site: Platform, api: Api, new_vm: NewVm) -> None:
    vm = new_vm(display="none")
    site.wait_state(vm["id"], "running")
    answer = api("POST", f"/api/v1/vms/{vm['id']}/actions/open-console", {"kind": "display"})
    assert answer.status == 409 and "has no display" in answer.problem["detail"]
    assert api("GET", f"/api/v1/vms/{vm['id']}/screenshot").status == 409


def test_a_question_to_an_agent_that_is_killed_is_answered_at_once(site: Platform, api: Api, new_vm: NewVm) -> None:
    vm = site.wait_state(new_vm()["id"], "running")
    agent = site.agents[vm["node"]]
    assert agent.process is not None
    agent.process.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as aside:
        answer = aside.submit(api, "GET", f"/api/v1/vms/{vm['id']}/console-log")
        pause(0.5)  # it is on its way to the agent; where it is not yet, the answer is the same
        agent.kill()
        said = answer.result(10)
    agent.start()
    assert said.status == 503 and "connected" in said.problem["detail"]
    until(lambda: api("GET", f"/api/v1/vms/{vm['id']}/console-log").status == 200, "it answers again")


def test_console_output_can_be_read_after_a_crash(site: Platform, new_vm: NewVm) -> None:
    vm = new_vm(restart="never")
    wait_until_booted(site, vm)
    os.kill(site.client.get("vms", vm["id"])["status"]["pid"], signal.SIGKILL)
    site.wait_state(vm["id"], "stopped")
    assert "novacron tiny guest: ready" in site.cli("vm", "log", vm["name"]).stdout


@pytest.mark.slow
def test_a_guest_that_floods_its_console_stays_within_limits(site: Platform, new_vm: NewVm) -> None:
    vm, other = new_vm(image="agent", cloud_init={"user_data": "#! hostile\nyes > /dev/console\n"}), new_vm()
    node = site.wait_state(vm["id"], "running")["node"]
    log = site.directory / node / "agent" / "vms" / vm["id"] / "console.log"
    with opened(site, site.client.act("vms", vm["id"], "open-console")) as console:
        until(lambda: (log.parent / "console.log.1").exists(), "its log has begun anew", 180)
        assert log.stat().st_size < 64 << 20
        wait_until_booted(site, other)
        with contextlib.suppress(ConsoleEnded):  # who does not look is sent away
            console.send(b"x" * (1 << 20))  # which the guest does not take
        site.cli("vm", "pause", other["name"], "--wait", "--timeout", "10")
    assert "y" in site.cli("vm", "log", vm["name"], "--size", "8").stdout
    site.cli("vm", "kill", vm["name"], "--wait", "--timeout", "20")
