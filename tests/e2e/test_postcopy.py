"""Guests that run at the target before their memory is there (post-copy)."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path

import pytest

from lab.platform import Platform, until
from tests.e2e.conftest import (
    Object,
    boot,
    delete,
    kill,
    revive,
    until_counts_on,
    until_ended,
    until_settled,
    watching,
)
from tests.support.e2e_guest import checksum
from tests.waiting import pause

SLOWLY = {"target": "host-b", "policy": "post-copy", "rate_limit_bytes_per_s": 4_000_000}
FOLLOWS = "its memory is still on its way"


def is_in_post_copy(victim: Platform, vm: Object) -> bool:
    """Say whether the VM runs while some of its memory is elsewhere."""
    return FOLLOWS in str(victim.client.get("vms", vm["id"])["status"]["reason"])


def wait_until_in_post_copy(victim: Platform, vm: Object) -> None:
    until(lambda: is_in_post_copy(victim, vm), "it runs and its memory is not there yet")


def wait_until_memory_complete(victim: Platform, vm: Object) -> None:
    try:
        until(lambda: not is_in_post_copy(victim, vm), "all of the memory has come", 90)
        assert until_settled(victim, vm)["node"] == "host-b"
    except AssertionError as error:
        raise AssertionError(f"{error}\n{victim.tails(40)}") from None


def begin(victim: Platform, name: str, number: int) -> tuple[Object, Object, str]:
    """Begin to move a VM in post-copy; return it, its migration, and the checksum of its memory."""
    vm = boot(victim, name, number, image="noisy")
    before = checksum(victim, vm)
    migration = victim.client.act("vms", vm["id"], "migrate", SLOWLY)
    return vm, migration, before


def test_with_post_copy_a_guest_runs_before_all_of_its_memory_has_arrived(victim: Platform) -> None:
    vm = boot(victim, "follows", 80, image="noisy")
    before = checksum(victim, vm)
    with watching(victim, 80) as client:
        migration = victim.client.act("vms", vm["id"], "migrate", SLOWLY)
        ended = until_ended(victim, migration["id"])
        assert ended["phase"] == "completed", f"{ended['error']}\n{victim.tails(40)}"
        wait_until_in_post_copy(victim, vm)
        wait_until_memory_complete(victim, vm)
        until_counts_on(victim, client, vm)
    assert checksum(victim, vm) == before
    back = victim.client.act("vms", vm["id"], "migrate", {"target": "host-a"})
    assert until_ended(victim, back["id"])["phase"] == "completed"
    until_settled(victim, vm)
    assert checksum(victim, vm) == before
    delete(victim, vm)


@pytest.mark.slow
def test_a_dead_link_during_post_copy_costs_the_outage(victim: Platform) -> None:
    vm, migration, before = begin(victim, "cut-off", 81)
    assert until_ended(victim, migration["id"])["phase"] == "completed"
    host = victim.host("host-a")
    host.cut()
    pause(10)
    host.mend()
    wait_until_memory_complete(victim, vm)
    assert checksum(victim, vm) == before
    delete(victim, vm)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["source agent", "target agent"])
def test_post_copy_continues_after_an_agent_was_killed(victim: Platform, what: str) -> None:
    vm, migration, before = begin(victim, what.replace(" ", "-") + "-2", 82)
    assert until_ended(victim, migration["id"])["phase"] == "completed"
    wait_until_in_post_copy(victim, vm)
    kill(victim, what, vm, "host-a", "host-b")
    pause(2)
    revive(victim)
    wait_until_memory_complete(victim, vm)
    assert checksum(victim, vm) == before
    delete(victim, vm)


@pytest.mark.slow
def test_an_agent_that_is_killed_while_the_guest_waits_for_a_page_costs_the_outage(victim: Platform) -> None:
    vm, migration, before = begin(victim, "waits", 85)
    assert until_ended(victim, migration["id"])["phase"] == "completed"
    wait_until_in_post_copy(victim, vm)
    with concurrent.futures.ThreadPoolExecutor(1) as beside:
        beside.submit(checksum, victim, vm)  # it needs what is not there yet; its console ends with the agent
        until(lambda: waits_for_a_page(victim, vm), "a thread of QEMU's waits for a page", 10)
        kill(victim, "target agent", vm, "host-a", "host-b")
        pause(2)
        assert waits_for_a_page(victim, vm), "nobody brings it meanwhile"
        revive(victim)
        wait_until_memory_complete(victim, vm)
    assert checksum(victim, vm) == before
    delete(victim, vm)


def waits_for_a_page(victim: Platform, vm: Object) -> bool:
    """Say whether a thread of the VM's QEMU at the target stands still in the kernel until a page is there."""
    pid = victim.qemus().get(f"host-b/{vm['id']}")
    where = [task / "wchan" for task in Path(f"/proc/{pid}/task").glob("*")]
    return any("userfault" in path.read_text() for path in where)


@pytest.mark.slow
def test_a_vm_in_post_copy_can_be_deleted(victim: Platform) -> None:
    vm, migration, _ = begin(victim, "gone", 83)
    assert until_ended(victim, migration["id"])["phase"] == "completed"
    delete(victim, vm)


@pytest.mark.slow
def test_a_guest_in_post_copy_is_not_migrated_again(victim: Platform) -> None:
    vm, migration, before = begin(victim, "hasty", 84)
    assert until_ended(victim, migration["id"])["phase"] == "completed"
    wait_until_in_post_copy(victim, vm)
    again = victim.client.act("vms", vm["id"], "migrate", {"target": "host-a"})
    ended = until_ended(victim, again["id"])
    assert ended["phase"] == "failed" and "its memory is still on its way" in ended["error"]
    wait_until_memory_complete(victim, vm)
    assert checksum(victim, vm) == before
    delete(victim, vm)
