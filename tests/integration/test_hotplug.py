"""Processors and memory that a guest gets while it runs, and takes with it when it moves."""

from __future__ import annotations

import pytest

from lab.platform import Platform, until
from tests.integration.conftest import Api
from tests.support.vms import (
    NewVm,
    Object,
    count_boots,
    put_clock_back,
    shell,
    until_clock_is_right,
    wait_for_guest_agent,
    wait_until_booted,
)
from tests.waiting import pause


def seen(site: Platform, vm: Object) -> tuple[int, int]:
    """Return how many processors the guest uses, and how many MiB of memory. It is left as it is."""
    words = shell(site, vm, "echo $(grep -c ^processor /proc/cpuinfo) $(free -m | sed -n 2p)").split()
    return int(words[0]), int(words[2])


def in_use(site: Platform, vm: Object) -> int | None:
    """Return how much memory the guest uses, as the API says."""
    memory_mib: int | None = (site.client.get("vms", vm["id"])["status"]["guest"] or {}).get("memory_mib")
    return memory_mib


def test_a_guest_grows_while_it_runs_and_stays_so_when_it_moves(site: Platform, api: Api, new_vm: NewVm) -> None:
    """Its agent lets it use what it is given, also after it has booted again: the test itself does not."""
    vm = new_vm(image="agent", cloud_init={}, memory_mib=256, vcpus_max=4, memory_max_mib=1024)
    wait_until_booted(site, vm)
    vm = wait_for_guest_agent(site, vm)
    cpus, mib = seen(site, vm)
    assert cpus == 1 and mib < 256 and in_use(site, vm) is None
    site.cli("vm", "set", vm["name"], "--vcpus", "2", "--memory", "384")
    until(lambda: (now := seen(site, vm))[0] == 2 and now[1] > mib + 100, "it has more", 60)
    hardware = site.client.get("vms", vm["id"])["status"]["hardware"]
    has = {"vcpus": 1, "memory_mib": 256, "vcpus_added": 1, "dimms_mib": [128], "balloon": True}
    assert {field: hardware[field] for field in has} == has
    until(lambda: in_use(site, vm) == 384, "the API says so", 60)
    assert "256 MiB and 128 MiB added; all in use" in site.cli("vm", "show", vm["name"]).stdout

    site.cli("vm", "reboot", vm["name"], "--wait")
    until(lambda: count_boots(site, vm) == 2, "it has booted again, with the module", 60)
    wait_for_guest_agent(site, vm)
    until(lambda: (now := seen(site, vm))[0] == 2 and now[1] > mib + 100, "it uses the module again", 60)
    until(lambda: in_use(site, vm) == 384, "the API says so again", 60)
    assert site.client.get("vms", vm["id"])["status"]["hardware"] == hardware

    shell(site, vm, "dd if=/dev/urandom of=/run/data bs=1M count=170 2>/dev/null; sync; echo done")
    before = shell(site, vm, "sha256sum /run/data | cut -c1-16")
    put_clock_back(site, vm)
    there = "host-b" if vm["node"] == "host-a" else "host-a"
    site.cli("vm", "migrate", vm["name"], "--to", there)
    vm = site.client.get("vms", vm["id"])
    assert shell(site, vm, "sha256sum /run/data | cut -c1-16") == before and seen(site, vm)[0] == 2
    assert vm["status"]["hardware"] == hardware
    until_clock_is_right(site, vm)
    site.cli("vm", "set", vm["name"], "--memory", "512", "--vcpus", "3")
    until(lambda: (now := seen(site, vm))[0] == 3 and now[1] > mib + 230, "it grows there, too", 60)
    agent = site.agents[vm["node"]]
    agent.kill()
    agent.start()
    site.wait_node(vm["node"])
    site.cli("vm", "set", vm["name"], "--memory", "640")
    until(
        lambda: (site.client.get("vms", vm["id"])["status"]["hardware"] or {}).get("dimms_mib") == [128, 128, 128],
        "also with another agent", 60,
    )  # fmt: skip
    until(lambda: in_use(site, vm) == 640, "the guest uses that, too", 60)
    path = f"/api/v1/vms/{vm['id']}"
    for change, field in (
        ({"memory_mib": 700}, "memory_mib"),
        ({"memory_mib": 2048}, "memory_max_mib"),
        ({"vcpus": 5}, "vcpus_max"),
    ):
        assert api("PATCH", path, change).problem["field"] == field
    for change in ({"vcpus": 1}, {"vcpus_max": 8}):
        assert api("PATCH", path, change).status == 409, change

    site.cli("vm", "reset", vm["name"], "--wait")
    until(
        lambda: {"vcpus": 3, "memory_mib": 640, "vcpus_added": 0, "dimms_mib": []}.items()
        <= (site.client.get("vms", vm["id"])["status"]["hardware"] or {}).items(),
        "it begins with what it had been given", 60,
    )  # fmt: skip
    wait_for_guest_agent(site, vm)
    assert seen(site, vm)[1] > mib + 350
    put_clock_back(site, vm)
    site.cli("vm", "pause", vm["name"], "--wait")
    pause(1)  # the guest stands still: a shorter time is not worth asking its agent for
    site.cli("vm", "resume", vm["name"], "--wait")
    until_clock_is_right(site, vm)
    assert site.client.get("vms", vm["id"])["status"]["crashes"] == 0


@pytest.mark.slow
def test_a_guest_gives_memory_back_also_after_it_has_moved_and_takes_it_again(site: Platform, new_vm: NewVm) -> None:
    vm = new_vm(image="balloon", cloud_init={}, memory_mib=384, node="host-a")
    wait_until_booted(site, vm)
    wait_for_guest_agent(site, vm)
    mib = seen(site, vm)[1]
    site.cli("vm", "set", vm["name"], "--memory", "256")

    def left() -> int | None:
        left_mib: int | None = site.client.get("vms", vm["id"])["status"]["balloon_mib"]
        return left_mib

    until(lambda: left() in (255, 256, 257), "it has given back", 120)
    assert seen(site, vm)[1] < mib - 100
    assert " MiB of 384, the rest is given back" in site.cli("vm", "show", vm["name"]).stdout
    assert site.client.get("vms", vm["id"])["spec"]["memory_mib"] == 384, "it can take it again"
    site.cli("vm", "migrate", vm["name"], "--to", "host-b")
    until(lambda: left() in (255, 256, 257), "also there", 120)
    site.cli("vm", "set", vm["name"], "--memory", "384")
    until(lambda: left() is None, "it has all of it again", 120)
    assert seen(site, vm)[1] > mib - 10


@pytest.mark.slow
def test_a_guest_that_gives_no_memory_back_is_told_of(site: Platform, new_vm: NewVm) -> None:
    vm = new_vm(image="tiny", memory_mib=256)
    site.wait_state(vm["id"], "running")
    site.cli("vm", "set", vm["name"], "--memory", "128")
    now = site.wait_vm(vm["id"], lambda now: now["status"]["reason_code"] == "CantShrink", "it says so", 120)
    assert "has 256 MiB of memory, not 128" in now["status"]["reason"]
    site.cli("vm", "kill", vm["name"], "--wait")
    site.cli("vm", "start", vm["name"], "--wait")
    assert site.client.get("vms", vm["id"])["status"]["hardware"]["memory_mib"] == 128


def test_invalid_hotplug_limits_are_refused(api: Api) -> None:
    new = {"name": "x", "image": "tiny"}
    for more, field in (
        ({"vcpus": 2, "vcpus_max": 1}, "vcpus_max"),
        ({"memory_mib": 512, "memory_max_mib": 256}, "memory_max_mib"),
        ({"memory_mib": 128, "memory_max_mib": 256}, "memory_mib"),
    ):
        assert api("POST", "/api/v1/vms", {**new, **more}).problem["field"] == field
