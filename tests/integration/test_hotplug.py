"""Processors and memory that a guest gets while it runs, and takes with it when it moves."""

from __future__ import annotations

from lab.platform import Platform, until
from tests.integration.conftest import Api
from tests.support.vms import NewVm, Object, shell, wait_until_booted

OF_MEMORY = "for f in /sys/devices/system/memory/memory*/state; do echo online > $f 2>/dev/null; done"
OF_CPUS = "for f in /sys/devices/system/cpu/cpu*/online; do echo 1 > $f 2>/dev/null; done"


def seen(site: Platform, vm: Object) -> tuple[int, int]:
    """Return how many processors the guest uses, and how many MiB of memory."""
    output = shell(site, vm, f"{OF_MEMORY}; {OF_CPUS}; echo $(grep -c ^processor /proc/cpuinfo) $(free -m | sed -n 2p)")
    words = output.split()
    return int(words[0]), int(words[2])


def test_a_guest_grows_while_it_runs_and_stays_so_when_it_moves(site: Platform, api: Api, new_vm: NewVm) -> None:
    vm = new_vm(memory_mib=256, vcpus_max=4, memory_max_mib=1024)
    wait_until_booted(site, vm)
    vm = site.client.get("vms", vm["id"])
    cpus, mib = seen(site, vm)
    assert cpus == 1 and mib < 256
    site.cli("vm", "set", vm["name"], "--vcpus", "2", "--memory", "384")
    until(lambda: (now := seen(site, vm))[0] == 2 and now[1] > mib + 100, "it has more", 60)
    hardware = site.client.get("vms", vm["id"])["status"]["hardware"]
    assert hardware == {"vcpus": 1, "memory_mib": 256, "vcpus_added": 1, "dimms_mib": [128], "balloon": True}
    shell(site, vm, "dd if=/dev/urandom of=/run/data bs=1M count=170 2>/dev/null; sync; echo done")
    before = shell(site, vm, "sha256sum /run/data | cut -c1-16")
    there = "host-b" if vm["node"] == "host-a" else "host-a"
    site.cli("vm", "migrate", vm["name"], "--to", there)
    vm = site.client.get("vms", vm["id"])
    assert shell(site, vm, "sha256sum /run/data | cut -c1-16") == before and seen(site, vm)[0] == 2
    assert vm["status"]["hardware"] == hardware
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
    path = f"/api/v1/vms/{vm['id']}"
    for change, field in (
        ({"memory_mib": 700}, "memory_mib"),
        ({"memory_mib": 2048}, "memory_max_mib"),
        ({"vcpus": 5}, "vcpus_max"),
    ):
        assert api("PATCH", path, change).problem["field"] == field
    for change in ({"vcpus": 1}, {"memory_mib": 256}, {"vcpus_max": 8}):
        assert api("PATCH", path, change).status == 409, change
    site.cli("vm", "kill", vm["name"], "--wait")
    site.cli("vm", "start", vm["name"], "--wait")
    assert site.wait_state(vm["id"], "running")["status"]["hardware"] == {
        "vcpus": 3, "memory_mib": 640, "vcpus_added": 0, "dimms_mib": [], "balloon": True,
    }  # fmt: skip
    assert site.client.get("vms", vm["id"])["status"]["crashes"] == 0


def test_invalid_hotplug_limits_are_refused(api: Api) -> None:
    new = {"name": "x", "image": "tiny"}
    for more, field in (
        ({"vcpus": 2, "vcpus_max": 1}, "vcpus_max"),
        ({"memory_mib": 512, "memory_max_mib": 256}, "memory_max_mib"),
        ({"memory_mib": 128, "memory_max_mib": 256}, "memory_mib"),
    ):
        assert api("POST", "/api/v1/vms", {**new, **more}).problem["field"] == field
