"""The disk under an agent's state has no room left: it is said, keeps VMs away, and nothing is lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.platform import Platform, until
from tests.e2e.conftest import Object, boot, delete, until_counts_on, until_settled, watching

NODE = "host-b"
SIZE = "384m"


@pytest.fixture
def small_disk(victim: Platform) -> Iterator[Path]:
    """Let the state of an agent be on a small disk of its own."""
    agent, state = victim.agents[NODE], victim.directory / NODE / "agent"
    away = state.with_name("agent-away")
    agent.stop()
    state.rename(away)
    state.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0700", "tmpfs", str(state)], check=True)
    subprocess.run(["cp", "-a", f"{away}/.", str(state)], check=True)
    agent.start()
    victim.wait_node(NODE)
    yield state
    for left in victim.client.list("vms"):  # of a test that failed: their files are here
        delete(victim, left)
    agent.stop()
    shutil.rmtree(away)
    subprocess.run(["cp", "-a", str(state), str(away)], check=True)
    subprocess.run(["umount", "-l", str(state)], check=True)
    state.rmdir()
    away.rename(state)
    agent.start()
    victim.wait_node(NODE)


def fill(directory: Path) -> Path:
    """Leave no byte free."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        free = os.statvfs(directory)
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
    return ballast


def disk_condition(victim: Platform) -> Object:
    conditions = victim.client.get("nodes", NODE)["status"]["conditions"]
    return next((condition for condition in conditions if condition["type"] == "DiskUsable"), {})


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_full_disk_under_an_agent_is_said_keeps_vms_away_and_loses_nothing(
    victim: Platform, small_disk: Path
) -> None:
    vm = boot(victim, "filled", 34, node=NODE, memory_mib=128, image="disk")
    pid = until_settled(victim, vm)["status"]["pid"]
    with watching(victim, 34) as client:
        ballast = fill(small_disk)
        until(lambda: disk_condition(victim).get("reason") == "DiskFull", "the node says that its disk is full", 60)
        assert "free" in disk_condition(victim)["message"]
        said = [event for event in victim.client.list("events", object=NODE) if event["reason"] == "DiskFull"]
        assert len(said) == 1
        refused = victim.cli("vm", "create", "late", "--image", "tiny", "--node", NODE, check=False)
        assert refused.returncode != 0 and "takes nothing new (DiskFull)" in refused.stderr
        until_counts_on(victim, client, vm)

        victim.agents[NODE].kill()
        victim.agents[NODE].start()
        victim.wait_node(NODE)
        assert victim.client.get("vms", vm["id"])["status"]["pid"] == pid
        until_counts_on(victim, client, vm)
        assert victim.cli("vm", "show", "filled").returncode == 0

        ballast.unlink()
        until(lambda: disk_condition(victim).get("status") == "true", "the node says that it has room", 60)
        late = victim.client.create_vm(name="late", image="tiny", memory_mib=64, node=NODE)
        victim.wait_state(late["id"], "running", 90)
        until_counts_on(victim, client, vm)
    assert until_settled(victim, vm)["status"]["crashes"] == 0
    delete(victim, late)
    delete(victim, vm)
