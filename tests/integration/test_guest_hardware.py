"""Hardware that a VM's user sets for its guest, and what becomes of it when the VM moves, is copied or is changed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.platform import Platform, until
from novacron.client.console import Console
from novacron.client.errors import ApiError
from novacron.model.devices import UsbDevice
from novacron.model.node import AcceleratorKind
from novacron.qemu.command import QemuConfig, command, monitor_path
from novacron.qemu.monitor import Monitor
from tests.support.vms import NewVm, Object, directory_of, shell, wait_until_booted

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


def threads_of(site: Platform, vm: Object) -> dict[str, set[int]]:
    """Return the CPUs on which each thread of a VM's QEMU may run, by its name and id."""
    node = site.client.get("vms", vm["id"])["node"]  # what the VM left where it was stays for a moment
    pid = site.qemus()[f"{node}/{vm['id']}"]
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {
        f"{(task / 'comm').read_text().strip()} {task.name}": os.sched_getaffinity(int(task.name)) for task in tasks
    }


def cpus_of(site: Platform, vm: Object) -> set[int]:
    """Return the CPUs that a VM has for itself, according to its node's agent."""
    now = site.client.get("vms", vm["id"])
    found: list[int] = json.loads((directory_of(site, now) / "cpus.json").read_text())
    return set(found)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this host has one CPU")
def test_a_vm_with_dedicated_cpus_has_them_alone_wherever_it_runs(site: Platform, new_vm: NewVm) -> None:
    every = os.sched_getaffinity(0)
    shared = new_vm(node="host-a")
    wait_until_booted(site, shared)
    count = len(every) - 1
    vm = new_vm(cpu_policy="dedicated", vcpus=count, node="host-a")
    wait_until_booted(site, vm)
    own = cpus_of(site, vm)
    assert len(own) == count
    assert set().union(*threads_of(site, shared).values()) == every - own, "others were moved off"

    def is_pinned() -> bool:
        threads = threads_of(site, vm)
        alone = [cpus for cpus in threads.values() if len(cpus) == 1 and cpus <= own]
        return (
            len(alone) == count
            and set().union(*alone) == own
            and all(cpus <= every - own for cpus in threads.values() if cpus not in alone)
        )

    assert is_pinned(), threads_of(site, vm)
    with pytest.raises(ApiError, match="node host-a can dedicate 0 more of its"):
        new_vm(cpu_policy="dedicated", node="host-a")
    site.agents["host-a"].kill()
    site.agents["host-a"].start()
    site.wait_node("host-a")
    later = new_vm(node="host-a")
    wait_until_booted(site, later)
    assert cpus_of(site, vm) == own and is_pinned(), "the next agent knows"
    assert set().union(*threads_of(site, later).values()) == every - own
    site.cli("vm", "migrate", vm["name"], "--to", "host-b")
    assert is_pinned(), "pinned anew at the target"
    until(lambda: set().union(*threads_of(site, shared).values()) == every, "host-a's CPUs are everybody's again")
    with pytest.raises(ApiError, match="cpu_policy can only change while"):
        site.client.configure_vm(vm["id"], cpu_policy="shared")
    site.cli("vm", "kill", vm["name"], "--wait")
    site.cli("vm", "set", vm["name"], "--cpu-policy", "shared")
    site.cli("vm", "start", vm["name"], "--wait")
    assert set().union(*threads_of(site, vm).values()) == every


HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
PAGES_MIB = 1024


@pytest.fixture
def huge_pages(site: Platform) -> Iterator[None]:
    """Huge pages on this host, of which both nodes know; others, such as its databases, may take some."""
    before = HUGE_PAGES.read_text()
    try:
        HUGE_PAGES.write_text(str(PAGES_MIB // 2))
        got = int(HUGE_PAGES.read_text())
    except OSError as error:
        pytest.skip(f"this host sets no huge pages aside: {error}")
    try:
        if got < PAGES_MIB // 2:
            pytest.skip(f"this host has {got} huge pages of 2 MiB, not {PAGES_MIB // 2}")
        until(lambda: huge_mib(site) == [PAGES_MIB, PAGES_MIB], "both nodes report them")
        yield
    finally:
        HUGE_PAGES.write_text(before)


def huge_mib(site: Platform) -> list[int]:
    return [node["status"]["inventory"]["huge_2m_mib"] for node in site.client.list("nodes")]


def huge_mib_of(site: Platform, vm: Object) -> int:
    """Return how much memory of a VM's QEMU consists of huge pages."""
    node = site.client.get("vms", vm["id"])["node"]
    pid = site.qemus()[f"{node}/{vm['id']}"]
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("HugetlbPages:"))) >> 10


def test_a_guest_of_huge_pages_moves_and_snapshots_and_what_does_not_go_with_them_is_refused(
    site: Platform, new_vm: NewVm, huge_pages: None
) -> None:
    vm = new_vm(image="disk", memory_mib=128, hugepages="2M", node="host-a")
    wait_until_booted(site, vm)
    assert huge_mib_of(site, vm) == 128, "all of the memory is there at once"
    with pytest.raises(ApiError, match="node host-a has 896 of its 1024 MiB in huge pages of 2M free, 1000 MiB needed"):
        new_vm(memory_mib=1000, hugepages="2M", node="host-a")
    with pytest.raises(ApiError, match="node host-a has no huge pages of 1G"):
        new_vm(memory_mib=1024, hugepages="1G", node="host-a")
    with pytest.raises(ApiError, match="huge pages can't grow"):
        new_vm(memory_mib=256, memory_max_mib=512, hugepages="2M")
    with pytest.raises(ApiError, match="consists of huge pages, which its node has set aside"):
        site.client.configure_vm(vm["id"], memory_mib=64)
    with pytest.raises(ApiError, match="can't run before its memory is there"):
        site.client.act("vms", vm["id"], "migrate", {"target": "host-b", "policy": "post-copy"})
    assert shell(site, vm, "echo here > /run/mark; echo done") == "done"
    site.cli("snapshot", "create", vm["name"], "whole", "--memory")
    assert shell(site, vm, "echo gone > /run/mark; echo done") == "done"
    site.cli("snapshot", "revert", vm["name"], "whole")
    assert shell(site, vm, "cat /run/mark") == "here"
    site.cli("snapshot", "delete", vm["name"], "whole")
    site.cli("vm", "migrate", vm["name"], "--to", "host-b")
    assert shell(site, vm, "cat /run/mark") == "here"
    assert huge_mib_of(site, vm) == 128
    site.cli("vm", "migrate", vm["name"], "--to", "host-a", "--warm")
    assert shell(site, vm, "cat /run/mark") == "here"
    site.cli("vm", "kill", vm["name"], "--wait")
    site.cli("vm", "migrate", vm["name"], "--to", "host-b")


def test_a_guest_sees_its_numa_nodes_and_keeps_them_when_it_moves(site: Platform, new_vm: NewVm) -> None:
    vm = new_vm(vcpus=2, memory_mib=256, numa_nodes=2, node="host-a")
    wait_until_booted(site, vm)
    look = "echo $(cat /sys/devices/system/node/node*/cpulist) $(ls -d /sys/devices/system/node/node* | wc -l)"
    assert shell(site, vm, look) == "0 1 2"
    assert shell(site, vm, "echo here > /run/mark; echo done") == "done"
    site.cli("vm", "migrate", vm["name"], "--to", "host-b")
    assert shell(site, vm, "cat /run/mark") == "here"
    assert shell(site, vm, look) == "0 1 2"
    for fields, field, why in (
        ({"vcpus": 3, "numa_nodes": 2}, "numa_nodes", "3 vCPUs can't be split evenly"),
        ({"vcpus": 2, "numa_nodes": 2, "vcpus_max": 4}, "vcpus_max", "can't get more vCPUs"),
        ({"cpu_policy": "dedicated", "vcpus_max": 4}, "vcpus_max", "dedicated CPUs can't get more"),
        ({"memory_mib": 255, "hugepages": "2M"}, "memory_mib", "use a multiple of 2 MiB"),
    ):
        with pytest.raises(ApiError, match=why) as refused:
            new_vm(**fields)
        assert refused.value.problem["field"] == field
