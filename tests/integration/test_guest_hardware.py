"""Hardware that a VM's user sets for its guest, and what becomes of it when the VM moves, is copied or is changed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab.platform import Platform, until
from novacron.client.console import Console
from novacron.client.errors import ApiError
from novacron.model.devices import UsbDevice
from novacron.model.node import AcceleratorKind
from novacron.qemu.command import QemuConfig, command, monitor_path
from novacron.qemu.monitor import Monitor
from tests.support.vms import NewVm, Object, shell, wait_until_booted

XHCI_CLASS = "0x0c0330"


def read_until(console: Console, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        seen += console.recv(30)
    return seen


def check_serial_ports(site: Platform, vm: Object, count: int) -> None:
    """Check that each further serial port carries both ways, and nothing of it comes out of another."""
    for number in range(1, 1 + count):
        with site.client.open_console(vm["id"], serial=number) as port:
            to_guest = f"stty -F /dev/ttyS{number} raw -echo; head -n 1 /dev/ttyS{number} > /in{number} &"
            said = shell(site, vm, f"({to_guest}) >/dev/null 2>&1; echo out-{number} > /dev/ttyS{number}; echo done")
            assert said == "done"
            assert read_until(port, b"\n").strip() == b"out-%d" % number
            port.send(b"in-%d\n" % number)
            until(lambda at=number: shell(site, vm, f"cat /in{at}") == f"in-{at}", "the guest reads it")  # type: ignore[misc]


def test_further_serial_ports_and_usb_devices_stay_when_the_vm_moves_and_its_agent_restarts(
    site: Platform, new_vm: NewVm
) -> None:
    vm = new_vm(serial_ports=2, usb=["tablet", "keyboard"], node="host-a")
    wait_until_booted(site, vm)
    check_serial_ports(site, vm, 2)
    assert XHCI_CLASS in shell(site, vm, "echo $(cat /sys/bus/pci/devices/*/class)")
    with pytest.raises(ApiError, match="has 2 further serial ports: there is no port 3"):
        site.client.open_console(vm["id"], serial=3)
    site.cli("vm", "migrate", vm["name"], "--to", "host-b")
    site.agents["host-b"].kill()
    site.agents["host-b"].start()
    site.wait_node("host-b")
    until(lambda: site.client.get("vms", vm["id"])["status"]["state"] == "running", "its agent has it again")
    check_serial_ports(site, vm, 2)


def test_serial_ports_and_usb_devices_change_while_off_and_come_with_clone_and_cold_move(
    site: Platform, new_vm: NewVm
) -> None:
    vm = new_vm(image="disk", node="host-a")
    wait_until_booted(site, vm)
    with pytest.raises(ApiError, match="serial_ports can only change while"):
        site.client.configure_vm(vm["id"], serial_ports=1)
    with pytest.raises(ApiError, match="has no further serial ports"):
        site.client.open_console(vm["id"], serial=1)
    site.cli("snapshot", "create", vm["name"], "whole", "--memory")
    site.cli("vm", "kill", vm["name"], "--wait")
    with pytest.raises(ApiError, match=r"snapshot whole .* holds the memory of a guest with the current usb"):
        site.client.configure_vm(vm["id"], usb=["mouse"], os="linux")
    site.cli("snapshot", "delete", vm["name"], "whole")
    site.cli("vm", "set", vm["name"], "--serial-ports", "3", "--usb", "mouse")
    site.cli("vm", "clone", vm["name"], f"{vm['name']}-c", "--wait")
    clone = site.client.get("vms", f"{vm['name']}-c")
    assert (clone["spec"]["serial_ports"], clone["spec"]["usb"]) == (3, ["mouse"])
    site.cli("vm", "delete", clone["name"], "--wait", "--yes")
    site.cli("vm", "migrate", vm["name"], "--to", "host-b")
    site.cli("vm", "start", vm["name"], "--wait")
    until(lambda: "tiny guest: ready" in site.console_log(site.client.get("vms", vm["id"])), "it is up", 60)
    check_serial_ports(site, vm, 3)


async def test_the_guests_controller_has_the_usb_devices_that_were_named(tmp_path: Path) -> None:
    config = QemuConfig(
        "usb", tmp_path, 1, 128, "q35", AcceleratorKind.TCG, None, None, "", (), usb=tuple(UsbDevice),
    )  # fmt: skip
    process = subprocess.Popen(command(config, incoming=False, paused=True))  # noqa: ASYNC220
    monitor = await Monitor.connect(monitor_path(tmp_path), lambda *_: None, lambda: process.poll() is None)
    try:
        text = (await monitor.execute("x-query-usb"))["human-readable-text"]
    finally:
        await monitor.close()
        process.kill()
        process.wait()
    assert [line.split("Product ")[1].split(",")[0] for line in text.splitlines()] == [
        "QEMU USB Tablet", "QEMU USB Keyboard", "QEMU USB Mouse",
    ]  # fmt: skip
