"""Drills of nodes: one is lost, one has no byte of room left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from lab.drills.platforms import small_platform
from lab.drills.recorder import Recorder
from lab.platform import Object, Platform, until
from lab.runbook_runs import lab_host

NODE = "host-b"
READY = "tiny guest: ready"
HEARD_S = 12.0
"""So long after a server has begun it starts nothing elsewhere: it has not heard from everybody yet."""
DISK_SIZE = "384m"


def lost(run: Recorder) -> None:
    """A node loses power; its highly available VM runs on another one, and nowhere else."""
    with run.step("a platform of two nodes runs"):
        site = run.enter_context(small_platform(run.directory))
    with run.step("a highly available VM runs"):
        vm = site.client.create_vm(name="drill", image="tiny", memory_mib=128, node=NODE, ha=True)
        until(lambda: READY in site.console_log(vm, NODE), "its guest has booted", 90)
        begun = max(service.started_at for service in (site.server, *site.agents.values()))
        until(lambda: time.monotonic() > begun + HEARD_S, "the server has heard from both nodes", 30)
    with run.fault(f"{NODE} loses power"):
        power_off(site, NODE)
    with run.step("the node is lost"):
        site.wait_node(NODE, ready=False)
    run.detected()
    with run.step("the VM runs elsewhere"):
        until(lambda: _runs_on(site, vm, "host-a"), "the VM runs on host-a", 120)
    run.recovered()
    with run.step("the node comes back, and runs nothing twice"):
        site.agents[NODE].start()
        site.wait_node(NODE)
        assert site.client.get("vms", vm["id"])["node"] == "host-a"
        assert _hosts_running(site, vm) == ["host-a"], "it runs twice"


def _runs_on(site: Platform, vm: Object, node: str) -> bool:
    assert len(_hosts_running(site, vm)) <= 1, "it runs in two places"
    return READY in site.console_log(vm, node)


def _hosts_running(site: Platform, vm: Object) -> list[str]:
    return [key.partition("/")[0] for key in site.qemus() if vm["id"] in key]


def power_off(site: Platform, node: str) -> None:
    """End a node's agent, what keeps its VMs, and every QEMU, at once."""
    site.agents[node].kill()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and _works_in(entry, site.directory / node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)


def _works_in(process: Path, directory: Path) -> bool:
    try:
        return (process / "cwd").readlink().is_relative_to(directory)
    except OSError:
        return False


def full(run: Recorder) -> None:
    """The disk under a node has no byte left; its VM runs on, and the runbook takes the node out and back."""
    with run.step("a platform of two nodes runs"):
        site = run.enter_context(small_platform(run.directory))
    state = run.enter_context(small_disk(site, NODE))
    with run.step("a VM runs"):
        vm = site.client.create_vm(name="drill", image="tiny", memory_mib=128, node=NODE)
        until(lambda: READY in site.console_log(vm, NODE), "its guest has booted", 90)
    with run.fault(f"the disk of {NODE} is filled"):
        ballast = fill(state)
    with run.step("the node says that its disk is full"):
        until(lambda: disk_reason(site, NODE) == "DiskFull", "the node says so", 90)
    run.detected()
    with run.step("no VM is placed there"):
        refused = site.cli("vm", "create", "late", "--image", "tiny", "--node", NODE, check=False)
        assert refused.returncode != 0 and "DiskFull" in refused.stderr, refused.stderr
    assert _hosts_running(site, vm) == [NODE], "the VM has ended"
    with run.step("room is made"):
        ballast.unlink()
    run.run_runbook(lab_host({}), {"node": NODE})
    with run.step("the node says that it has room"):
        until(lambda: disk_reason(site, NODE) != "DiskFull", "the node says so", 90)
    run.recovered()
    moved = site.client.get("vms", vm["id"])
    assert moved["node"] == "host-a" and moved["status"]["state"] == "running", "its VM did not move"
    run.loss_s = 0.0
    site.client.delete("vms", vm["id"])
    until(lambda: not list(site.client.list("vms")), "the VM is deleted", 60)
    run.record_history()


@contextlib.contextmanager
def small_disk(site: Platform, node: str) -> Iterator[Path]:
    """Let the state of an agent be on a small disk of its own, which this mounts: that takes root."""
    agent, state = site.agents[node], site.directory / node / "agent"
    away = state.with_name("agent-away")
    agent.stop()
    state.rename(away)
    state.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE},mode=0700", "tmpfs", str(state)], check=True)
    try:
        subprocess.run(["cp", "-a", f"{away}/.", str(state)], check=True)
        agent.start()
        site.wait_node(node)
        yield state
    finally:
        agent.stop()
        for key, pid in site.qemus().items():
            if key.startswith(f"{node}/"):
                os.kill(pid, signal.SIGKILL)
        subprocess.run(["umount", "-l", str(state)], check=True)
        shutil.rmtree(away)


def fill(directory: Path) -> Path:
    """Leave no byte free; return the file to remove."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        free = os.statvfs(directory)
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
    return ballast


def disk_reason(site: Platform, node: str) -> str:
    """Return what a node says of its disk."""
    conditions = site.client.get("nodes", node)["status"]["conditions"]
    return next((str(each["reason"]) for each in conditions if each["type"] == "DiskUsable"), "")
