"""Clones of real disks: shared and copied, of guests that run and that do not, and interrupted."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.platform import Platform, until
from novacron.client import NotFoundError
from tests.integration.conftest import Api
from tests.support.vms import (
    NewVm,
    Object,
    boot_vm,
    count_boots,
    directory_of,
    read_from_disk,
    shell,
    snapshots_in_file,
    wait_until_node_answers,
    write_to_disk,
)

Clone = Callable[..., Object]


@pytest.fixture
def clone(site: Platform, new_vm: NewVm, new_name: Callable[[], str]) -> Iterator[Clone]:
    """Clone VMs; the clones are deleted before what they were made from."""
    ids: list[str] = []

    def create(vm: Object, **fields: Any) -> Object:
        clone_vm = site.client.clone_vm(vm["id"], new_name(), **fields)
        ids.append(clone_vm["id"])
        return clone_vm

    yield create
    for id in ids:
        with contextlib.suppress(NotFoundError):  # the test deleted it
            site.client.delete("vms", id)
    until(lambda: not set(ids) & {vm["id"] for vm in site.client.list("vms")}, "the clones are gone")


def wait_until_up(site: Platform, vm: Object) -> Object:
    site.wait_state(vm["id"], "running", 60)
    until(lambda: "tiny guest: ready" in site.console_log(vm), "it is up", 60)
    return site.client.get("vms", vm["id"])


@pytest.mark.parametrize("linked", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["linked", "full"])
def test_a_clone_has_its_sources_data_and_nothing_else(
    site: Platform, new_vm: NewVm, clone: Clone, linked: bool
) -> None:
    vm = boot_vm(site, new_vm, disk_mib=64)
    write_to_disk(site, vm, "one")
    first = wait_until_up(site, clone(vm, linked=linked))
    assert (read_from_disk(site, first), first["node"], first["clone_of"]) == ("one", vm["node"], None)
    write_to_disk(site, vm, "two")
    write_to_disk(site, first, "other")
    second = wait_until_up(site, clone(vm, linked=linked))
    third = wait_until_up(site, clone(first, linked=linked))
    assert [read_from_disk(site, each) for each in (vm, first, second, third)] == ["two", "other", "two", "other"]
    assert count_boots(site, vm) == 1, "the source went on"
    shared = [len(list(directory_of(site, each).glob("shared-*"))) for each in (vm, first, second, third)]
    assert shared == ([2, 2, 2, 2] if linked else [0, 0, 0, 0])
    site.cli("vm", "delete", vm["name"], "--wait", "--yes")
    assert not directory_of(site, vm).exists()
    site.cli("vm", "kill", second["name"], "--wait")
    site.cli("vm", "start", second["name"], "--wait")
    until(lambda: site.console_log(second).count("tiny guest: ready") == 2, "it is up", 60)
    assert read_from_disk(site, second) == "two", "what it shared with its source is its own"
    assert re.search(r"Cloned .*from " + vm["name"], site.cli("vm", "history", second["name"]).stdout)


@pytest.mark.slow
def test_a_linked_clone_moves_with_all_of_its_shared_layers(site: Platform, new_vm: NewVm, clone: Clone) -> None:
    vm = boot_vm(site, new_vm)
    write_to_disk(site, vm, "one")
    linked = wait_until_up(site, clone(vm, linked=True))
    shell(site, linked, "echo kept > /run/word")
    there = "host-b" if vm["node"] == "host-a" else "host-a"
    site.cli("vm", "migrate", linked["name"], "--to", there)
    linked = site.client.get("vms", linked["id"])
    assert (read_from_disk(site, linked), shell(site, linked, "cat /run/word"), linked["node"]) == (
        "one",
        "kept",
        there,
    )
    write_to_disk(site, vm, "two")
    second = wait_until_up(site, clone(vm, linked=True))
    site.cli("vm", "kill", second["name"], "--wait")
    site.cli("vm", "migrate", second["name"], "--to", there)
    site.cli("vm", "start", second["name"], "--wait")
    second = site.client.get("vms", second["id"])
    until(lambda: site.console_log(second).count("tiny guest: ready") == 1, "it is up", 60)
    assert (read_from_disk(site, second), second["node"]) == ("two", there), "off"
    assert read_from_disk(site, vm) == "two"


@pytest.mark.slow
def test_concurrent_clones_do_not_disturb_each_other(site: Platform, new_vm: NewVm, clone: Clone) -> None:
    vm = boot_vm(site, new_vm)
    write_to_disk(site, vm, "one")
    asked = [clone(vm, linked=linked, power="stopped") for linked in (False, True, False)]
    until(lambda: all(site.client.get("vms", each["id"])["clone_of"] is None for each in asked), "all are made", 60)
    layers = [[path.name for path in directory_of(site, vm | each).glob("shared-*")] for each in asked]
    assert sorted(map(len, layers)) in ([0, 0, 1], [0, 1, 1], [1, 1, 1])
    for each in asked:
        site.cli("vm", "start", each["name"], "--wait")
        assert read_from_disk(site, wait_until_up(site, each)) == "one"


@pytest.mark.slow
def test_a_vm_that_is_off_is_cloned_without_its_snapshots(site: Platform, new_vm: NewVm, clone: Clone) -> None:
    vm = boot_vm(site, new_vm)
    write_to_disk(site, vm, "one")
    site.cli("snapshot", "create", vm["name"], "s")
    write_to_disk(site, vm, "two")
    site.cli("vm", "kill", vm["name"], "--wait")
    copied = wait_until_up(site, clone(vm))
    assert read_from_disk(site, copied) == "two" and snapshots_in_file(site, copied) == []
    site.cli("snapshot", "delete", vm["name"], "s")
    off = clone(vm, linked=True, power="stopped")
    until(lambda: site.client.get("vms", off["id"])["clone_of"] is None, "it is made")
    assert site.client.get("vms", off["id"])["status"]["state"] in ("stopped", "pending")
    site.cli("vm", "start", off["name"], "--wait")
    assert read_from_disk(site, wait_until_up(site, off)) == "two"


def test_impossible_clones_are_refused(site: Platform, api: Api, new_vm: NewVm, clone: Clone) -> None:
    vm = boot_vm(site, new_vm)
    path = f"/api/v1/vms/{vm['id']}/actions/clone"
    assert api("POST", path, {"name": "A"}).problem["field"] == "name"
    assert api("POST", path, {"name": vm["name"]}).problem["field"] == "name"
    assert api("POST", path, {"name": "x", "address": "10.77.0.9"}).problem["field"] == "address"
    assert api("POST", "/api/v1/vms/none/actions/clone", {"name": "x"}).status == 404
    site.cli("snapshot", "create", vm["name"], "s")
    refused = api("POST", path, {"name": "x", "linked": True}).problem
    assert refused["field"] == "linked" and "has snapshots" in refused["detail"]
    until(lambda: clone(vm)["clone_of"], "a clone is asked for")
    agent = site.agents[vm["node"]]
    assert agent.process is not None
    agent.process.send_signal(signal.SIGSTOP)
    try:
        clone(vm)
        for answer in (
            api("DELETE", f"/api/v1/vms/{vm['id']}"),
            api("POST", f"/api/v1/vms/{vm['id']}/actions/migrate"),
            api("POST", f"/api/v1/vms/{vm['id']}/snapshots", {"name": "t"}),
        ):
            assert answer.status == 409 and "is being cloned from it" in answer.problem["detail"]
    finally:
        agent.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("linked", "what"),
    [
        (True, "agent"),
        pytest.param(False, "server", marks=pytest.mark.slow),
        pytest.param(False, "agent", marks=pytest.mark.slow),
        pytest.param(True, "server", marks=pytest.mark.slow),
    ],
)
def test_a_clone_completes_after_a_kill(site: Platform, new_vm: NewVm, clone: Clone, linked: bool, what: str) -> None:
    vm = boot_vm(site, new_vm)
    write_to_disk(site, vm, "one")
    service = site.agents[vm["node"]] if what == "agent" else site.server
    asked = clone(vm, linked=linked)
    copying = directory_of(site, vm) / ("next-1.qcow2" if linked else "copy.qcow2")
    until(
        lambda: copying.exists() or (directory_of(site, {**asked, **vm, "id": asked["id"]}) / "disk.qcow2").exists(), ""
    )
    service.kill()
    service.start()
    site.wait_ready()
    wait_until_node_answers(site, vm)
    copy = wait_until_up(site, asked)
    assert (read_from_disk(site, copy), read_from_disk(site, vm)) == ("one", "one")
    assert count_boots(site, vm) == 1 and site.client.get("vms", vm["id"])["status"]["crashes"] == 0
    write_to_disk(site, vm, "two")
    site.cli("vm", "kill", vm["name"], "--wait")
    site.cli("vm", "start", vm["name"], "--wait")
    until(lambda: site.console_log(vm).count("tiny guest: ready") == 2, "it is up", 60)
    assert read_from_disk(site, vm) == "two", "what it wrote after that is there"
    file_names = {path.name for path in directory_of(site, vm).iterdir()}
    assert (
        not file_names & {"copy.qcow2", "link.new"}
        and len([name for name in file_names if name.startswith("next-")]) <= 1
    )


@pytest.mark.slow
def test_a_clone_without_enough_space_says_so_and_loses_nothing(
    site: Platform, api: Api, new_vm: NewVm, clone: Clone
) -> None:
    vms = site.directory / "host-a" / "agent" / "vms"
    assert not list(vms.iterdir()), "other tests have cleaned up"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m,mode=711", "tmpfs", str(vms)], check=True)
    try:
        vm = boot_vm(site, new_vm, node="host-a")
        shell(
            site, vm, "dd if=/dev/urandom of=/dev/vda bs=1M count=20 seek=20 conv=notrunc,fsync 2>/dev/null; echo done"
        )
        write_to_disk(site, vm, "one")
        ballast = vms / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(vms).free - (8 << 20))
        answer = api("POST", f"/api/v1/vms/{vm['id']}/snapshots", {"name": "m", "memory": True}).body
        failed = site.client.wait("snapshots", answer["id"], lambda now: now is None or now["phase"] != "creating", 60)
        assert failed is not None and failed["phase"] == "failed" and failed["error"], failed
        site.cli("snapshot", "delete", vm["name"], "m")
        copy = clone(vm)
        refused = site.wait_vm(copy["id"], lambda now: now["status"]["state"] == "failed", "the clone has failed")
        assert "No space left" in refused["status"]["reason"] and refused["clone_of"], refused["status"]
        assert (read_from_disk(site, vm), count_boots(site, vm)) == ("one", 1), "the source runs on"
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=256m", str(vms)], check=True)
        assert read_from_disk(site, wait_until_up(site, copy)) == "one", "it is made when there is room"
        site.cli("vm", "delete", copy["name"], "--wait", "--yes")
        site.cli("vm", "delete", vm["name"], "--wait", "--yes")
        until(lambda: not list(vms.iterdir()), "nothing is left")
    finally:
        subprocess.run(["umount", "-l", str(vms)], check=True)
