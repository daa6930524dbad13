"""The life of one VM on one node, with real QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.platform import Platform, until
from novacron.model.node import AcceleratorKind
from novacron.qemu import probe
from tests.support.vms import NewVm, count_boots, wait_until_booted
from tests.waiting import pause


async def test_the_probe_reports_the_accelerator_that_really_runs(tmp_path: Path) -> None:
    started = time.monotonic()
    result = await probe.remembered("qemu-system-x86_64", "7", tmp_path / "answer.json")
    assert result.kind in AcceleratorKind and result.reason
    assert time.monotonic() - started < 2 * probe.TIME_LIMIT_S + 5
    answer = (tmp_path / "answer.json").read_text()
    assert await probe.remembered("qemu-system-x86_64", "7", tmp_path / "answer.json") == result
    assert (tmp_path / "answer.json").read_text() == answer, "it is asked once"


async def test_an_accelerator_whose_guest_hangs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "TIME_LIMIT_S", 1.0)
    monkeypatch.setattr(probe, "CODE", b"\xeb\xfe")  # jmp $
    assert "did not get through 64-bit mode within 1 s" in str(
        await probe._try("qemu-system-x86_64", AcceleratorKind.TCG)
    )


def test_the_probe_is_shown_with_the_node(site: Platform) -> None:
    text = site.cli("node", "show", "host-a").stdout
    assert "PROBE" in text and ("emulation works" in text or "64-bit mode under KVM" in text)


def test_pause_resume_reboot_stop_start(site: Platform, new_vm: NewVm) -> None:
    vm = new_vm()
    wait_until_booted(site, vm)
    name = vm["name"]
    assert "paused" in site.cli("vm", "pause", name, "--wait").stdout
    assert "running" in site.cli("vm", "resume", name, "--wait").stdout
    pid = site.client.get("vms", name)["status"]["pid"]
    site.cli("vm", "reboot", name, "--wait")
    until(lambda: count_boots(site, vm) == 2, "it has booted again", 60)
    assert site.client.get("vms", name)["status"]["pid"] == pid, "a reboot keeps the process"
    until(lambda: site.console_log(site.client.get("vms", name)).count("tiny guest: ready") == 2, "it is up", 60)
    started = time.monotonic()
    site.cli("vm", "stop", name, "--grace", "90", "--wait")
    assert time.monotonic() - started < 80, "the guest powered itself off on request"
    assert not [key for key in site.qemus() if vm["id"] in key]
    site.cli("vm", "start", name, "--wait")
    assert site.client.get("vms", name)["status"]["pid"] != pid


def test_a_guest_that_ignores_the_request_is_forced_off(site: Platform, new_vm: NewVm) -> None:
    vm = new_vm()
    site.wait_state(vm["id"], "running")  # its kernel has not begun to listen to the power button
    site.cli("vm", "stop", vm["name"], "--grace", "1", "--wait")
    assert site.client.get("vms", vm["name"])["status"]["state"] == "stopped"


def type_until(vm: dict[str, Any], command: bytes, what: str, done: Callable[[], bool]) -> None:
    """Type a command into the guest's shell, until ``done``."""
    console = subprocess.Popen(
        [sys.executable, "-m", "novacron", "vm", "console", vm["name"]],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert console.stdin is not None

    def typed() -> bool:
        """Type it repeatedly: a shell that is just starting discards earlier input."""
        with contextlib.suppress(OSError):  # the console has ended, and with it the guest
            console.stdin.write(b"\n" + command + b"\n")  # type: ignore[union-attr]
            console.stdin.flush()  # type: ignore[union-attr]
        pause(0.5)
        return done()

    until(typed, what, 60)
    with contextlib.suppress(OSError):
        console.stdin.close()
    console.wait(10)


def power_off_from_within(vm: dict[str, Any], done: Callable[[], bool]) -> None:
    """Let the guest power itself off, until ``done``."""
    type_until(vm, b"poweroff -f", "the guest has powered itself off", done)


def test_a_guest_that_powers_itself_off_stays_off(site: Platform, new_vm: NewVm) -> None:
    vm = new_vm()
    wait_until_booted(site, vm)
    power_off_from_within(vm, lambda: site.client.get("vms", vm["id"])["status"]["state"] == "stopped")
    off = site.client.get("vms", vm["id"])
    assert off["status"]["reason"] == "powered off by the guest" and off["spec"]["power"] == "running"
    assert "running" in site.cli("vm", "start", vm["name"], "--wait").stdout


def test_a_guest_that_suspends_itself_is_woken(site: Platform, new_vm: NewVm) -> None:
    vm = new_vm()
    wait_until_booted(site, vm)
    sleep_once = b"[ $slept ] || { slept=1; echo mem > /sys/power/state; echo awake-$((40 + 2)); }"
    type_until(vm, sleep_once, "it goes on", lambda: "awake-42" in site.console_log(site.client.get("vms", vm["id"])))
    logs = "".join(agent.log.read_text() for agent in site.agents.values())
    assert any("wake" in line and vm["id"] in line for line in logs.splitlines()), "it did sleep"
    status = site.client.get("vms", vm["id"])["status"]
    assert (status["state"], status["reason"]) == ("running", "")
    site.cli("vm", "reboot", vm["name"], "--wait")
    until(lambda: count_boots(site, vm) == 2, "it does as it is told", 60)


def test_a_qemu_that_is_killed_is_started_again(site: Platform, new_vm: NewVm) -> None:
    vm = new_vm()
    pid = site.wait_state(vm["id"], "running")["status"]["pid"]
    os.kill(pid, signal.SIGKILL)
    again = site.wait_vm(
        vm["id"], lambda v: v["status"]["pid"] not in (0, pid) and v["status"]["state"] == "running", "it runs again"
    )
    assert again["status"]["crashes"] >= 1


def test_a_guest_that_powers_itself_off_restarts_where_its_spec_says_so(site: Platform, new_vm: NewVm) -> None:
    vm = new_vm(restart="always")
    wait_until_booted(site, vm)
    power_off_from_within(vm, lambda: count_boots(site, vm) == 2)
    site.wait_state(vm["id"], "running")


def test_a_crashed_vm_stays_off_where_its_spec_says_so_and_can_be_resized(site: Platform, new_vm: NewVm) -> None:
    vm = new_vm(restart="never")
    wait_until_booted(site, vm)
    os.kill(site.client.get("vms", vm["id"])["status"]["pid"], signal.SIGKILL)
    off = site.wait_state(vm["id"], "stopped")
    assert off["status"]["reason"] == "crashed, and its restart policy does not start it again"
    assert "on-failure" in site.cli("vm", "set", vm["name"], "--restart", "on-failure").stdout
    site.cli("vm", "stop", vm["name"], "--wait")
    shown = site.cli("vm", "set", vm["name"], "--memory", "320", "--vcpus", "2", "--protect").stdout
    assert "320 MiB" in shown and "PROTECTED" in shown
    site.cli("vm", "start", vm["name"], "--wait")
    pid = site.client.get("vms", vm["id"])["status"]["pid"]
    arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    assert "320M" in arguments and arguments[arguments.index("-smp") + 1] == "2"
    site.cli("vm", "set", vm["name"], "--no-protect")


@pytest.mark.slow
def test_a_hanging_qemu_is_not_taken_for_dead(site: Platform, new_vm: NewVm) -> None:
    vm = new_vm()
    pid = site.wait_state(vm["id"], "running")["status"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        site.client.act("vms", vm["id"], "pause")
        unknown = site.wait_state(vm["id"], "unknown", 60)
        assert "did not answer" in unknown["status"]["reason"]
        refused = site.cli("vm", "migrate", vm["name"], check=False)
        assert refused.returncode == 4 and "its QEMU may still run" in refused.stderr and "--force" in refused.stderr
        assert len([key for key in site.qemus() if vm["id"] in key]) == 1
        site.client.act("vms", vm["id"], "stop", {"timeout_s": 0})
        site.wait_state(vm["id"], "stopped", 60)
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGCONT)


def test_programs_get_json_and_exit_codes(site: Platform, new_vm: NewVm) -> None:
    vm = new_vm(power="stopped")
    assert json.loads(site.cli("vm", "show", vm["name"], "-o", "json").stdout)["id"] == vm["id"]
    assert isinstance(json.loads(site.cli("vm", "list", "--output", "json").stdout), list)
    unknown = site.cli("vm", "show", "unknown", check=False)
    assert unknown.returncode == 3 and unknown.stderr.startswith("error: there is no VM 'unknown'")
    assert site.cli("vm", "create", "Bad_Name", "--image", "tiny", check=False).returncode == 2
    assert site.cli("vm", "pause", vm["name"], check=False).returncode == 4
    for command in (("node", "list"), ("migration", "list"), ("image", "list"), ("events",), ("token", "list")):
        assert site.cli(*command).stdout.splitlines()[0].isupper()
        assert isinstance(json.loads(site.cli(*command, "-o", "json").stdout), list)


def test_shell_completion_works() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "novacron", "--show-completion", "bash"], capture_output=True, text=True, check=True,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )  # fmt: skip
    assert "complete" in done.stdout


def test_the_cli_reports_a_wrong_or_unreachable_server(site: Platform) -> None:
    environment = {**os.environ, "NOVACRON_URL": "https://127.0.0.1:1", "NOVACRON_TOKEN": "x"}
    done = subprocess.run(
        [sys.executable, "-m", "novacron", "vm", "list"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 6 and "no answer from https://127.0.0.1:1" in done.stderr
    environment = {**os.environ, "NOVACRON_TOKEN": "nva_wrong"}
    done = subprocess.run(
        [sys.executable, "-m", "novacron", "vm", "list"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 5


def test_a_second_agent_on_the_same_files_is_refused(site: Platform, images: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "novacron", "agent", "--name", "host-a", "--state-dir", str(site.directory / "host-a"),
         "--images-dir", str(images), "--dwcp-port", "0"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 1 and "already works with" in done.stderr


def test_a_host_without_a_token_gets_instructions_to_obtain_it(tmp_path: Path) -> None:
    (tmp_path / "nonsense").touch(0o600)
    for join, text in (
        ([], "node join-token"),
        (["--join", f"@{tmp_path / 'nonsense'}"], "not a join token"),
        (["--join", "nvj_a-token"], "every user of this host can read"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "novacron", "agent", "--state-dir", str(tmp_path), *join],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        assert done.returncode == 1 and text in done.stderr


def test_only_documented_ports_are_open(site: Platform) -> None:
    """The server listens on its two loopback ports, an agent on DWCP's, which demands a node's certificate."""
    assert site.server.process is not None
    lines = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    listening = {line.split()[3] for line in lines if f"pid={site.server.process.pid}," in line}
    assert listening == {f"127.0.0.1:{port}" for port in site.ports}


async def test_strangers_get_nothing_from_the_link_and_from_dwcp(site: Platform) -> None:
    import ssl

    context = ssl.create_default_context(cadata=site.client.config.ca)
    context.check_hostname = False
    reader, writer = await asyncio.open_connection("127.0.0.1", site.ports[1], ssl=context)
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await writer.drain()
        await reader.readexactly(1)
    writer.close()
