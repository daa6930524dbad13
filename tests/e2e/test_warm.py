"""Warm migrations: the guest is paused, and resumes unchanged in one place, whatever is killed or aborted."""

from __future__ import annotations

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
    until_logged,
    until_settled,
    watching,
)
from tests.support.e2e_guest import checksum, run_in_guest, write_random_data
from tests.waiting import pause

SLOWLY = {"target": "host-b", "warm": True, "rate_limit_bytes_per_s": 8_000_000}
MOMENTS = ("the disk flows", "memory flows", "the source has promised")
VICTIMS = ("source agent", "target agent", "source qemu", "target qemu", "server", "postgres")
QUICK = {("target agent", "the source has promised")}
"""What every run tries; the others are in the slow matrix."""
CASES = [
    pytest.param(what, moment, marks=() if (what, moment) in QUICK else pytest.mark.slow)
    for what in VICTIMS
    for moment in MOMENTS
    if (what, moment) != ("target qemu", "the disk flows")  # there is none yet
]


def begin(victim: Platform, name: str, number: int) -> tuple[Object, str, str]:
    """Return a VM, and the checksums of what it has on its disk and in memory. ``number``: an address that no other has
    had, for hosts remember who had one."""
    vm = boot(victim, name, number, image="disk")
    run_in_guest(victim, vm, "dd if=/dev/urandom of=/run/random bs=1M count=16 2>/dev/null; echo done")
    return vm, write_random_data(victim, vm, 12), checksum(victim, vm)


def until_moment(victim: Platform, migration: str, moment: str, since: int) -> None:
    if moment == "the source has promised":
        until_logged(victim, "host-a", "promised not to run it", since)
        return

    def reached() -> bool:
        progress = victim.client.get("migrations", migration)["progress"]
        memory = progress["total_bytes"] > 0
        return bool(progress["wire_bytes"] > 2_000_000 and (memory or moment == "the disk flows"))

    until(reached, moment)


@pytest.mark.parametrize(("what", "moment"), CASES)
def test_a_kill_during_a_warm_migration_leaves_one_unchanged_guest(victim: Platform, what: str, moment: str) -> None:
    number = 130 + VICTIMS.index(what) * len(MOMENTS) + MOMENTS.index(moment)
    vm, disk, memory = begin(victim, f"warm-{number}", number)
    since = victim.agents["host-a"].log.stat().st_size
    with watching(victim, number) as client:
        migration = victim.client.act("vms", vm["id"], "migrate", SLOWLY)
        until_moment(victim, migration["id"], moment, since)
        kill(victim, what, vm, "host-a", "host-b")
        pause(1)
        revive(victim)
        ended = until_ended(victim, migration["id"])
        settled = until_settled(victim, vm)
        assert settled["node"] == ("host-b" if ended["phase"] == "completed" else "host-a"), ended
        assert ended["phase"] == "completed" or ended["error"], "a failure says why"
        lost = "qemu" in what and settled["status"]["crashes"] > 0
        if not lost:
            until_counts_on(victim, client, vm)
            assert checksum(victim, vm) == memory
    if lost:
        until(
            lambda: "tiny guest: ready" in victim.console_log(settled).rpartition("tiny guest: up")[2], "it is up", 60
        )
    assert run_in_guest(victim, vm, "sync; echo 3 > /proc/sys/vm/drop_caches; md5sum /dev/vda") == disk
    delete(victim, vm)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS[:2])
def test_an_aborted_warm_migration_resumes_the_guest_at_the_source(victim: Platform, moment: str) -> None:
    number = 160 + MOMENTS.index(moment)
    vm, disk, memory = begin(victim, f"warm-abort-{number}", number)
    with watching(victim, number) as client:
        migration = victim.client.act("vms", vm["id"], "migrate", SLOWLY)
        until_moment(victim, migration["id"], moment, 0)
        victim.cli("migration", "abort", migration["id"])
        assert until_ended(victim, migration["id"])["phase"] == "aborted"
        assert until_settled(victim, vm)["node"] == "host-a"
        until_counts_on(victim, client, vm)
    assert checksum(victim, vm) == memory
    assert run_in_guest(victim, vm, "sync; echo 3 > /proc/sys/vm/drop_caches; md5sum /dev/vda") == disk
    delete(victim, vm)
