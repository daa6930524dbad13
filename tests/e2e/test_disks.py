"""Disks that move with their VMs: their contents arrive unchanged, whatever happens during the migration."""

from __future__ import annotations

import contextlib
import functools
import subprocess
from collections.abc import Iterator

import pytest

from lab.platform import Platform, until
from tests.e2e.conftest import (
    Object,
    boot,
    delete,
    has_text,
    kill,
    revive,
    until_counts_on,
    until_ended,
    until_settled,
    watching,
)
from tests.support.e2e_guest import disk_sum, run_in_guest, write_random_data
from tests.waiting import pause

MIB = 1 << 20


def test_a_running_vm_moves_with_its_disk_and_back(victim: Platform) -> None:
    vm = boot(victim, "disk", 60, image="disk")
    before = write_random_data(victim, vm)
    sent = []
    with watching(victim, 60) as client:
        for target in ("host-b", "host-a"):
            migration = victim.client.act("vms", "disk", "migrate", {"target": target})
            ended = until_ended(victim, migration["id"])
            assert ended["phase"] == "completed", f"{ended['error']}\n{victim.tails(40)}"
            until_settled(victim, vm)
            until_counts_on(victim, client, vm)
            assert disk_sum(victim, vm) == before
            progress = ended["progress"]
            assert progress["disk_bytes"] >= 4 * MIB and progress["disk_remaining_bytes"] == 0
            sent.append(progress["wire_bytes"])
            log = victim.agents[migration["source"]].log
            until(functools.partial(has_text, log, '"what": "disk"'), "it is kept", 20)
            pause(1.5)
    assert sent[1] < 3 * MIB < 4 * MIB < sent[0], "random data goes over the link once"
    delete(victim, vm)


CHURN = (
    "sh -c '(i=0; while [ ! -e /run/stop ]; do i=$(((i+1)%8)); dd if=/dev/urandom of=/run/c$i bs=256k count=1; "
    "dd if=/run/c$i of=/dev/vda bs=256k seek=$i conv=notrunc,fsync; done; touch /run/stopped) >/dev/null 2>&1 &'; "
    "echo begun"
)
COMPARE = (
    "touch /run/stop; while [ ! -e /run/stopped ]; do sleep 1; done; echo 3 > /proc/sys/vm/drop_caches; "
    "for i in 0 1 2 3 4 5 6 7; do "
    "dd if=/dev/vda bs=256k skip=$i count=1 2>/dev/null | cmp - /run/c$i && echo -n same; done"
)


def test_writes_during_a_migration_arrive(victim: Platform) -> None:
    vm = boot(victim, "writes", 61, image="disk")
    assert run_in_guest(victim, vm, CHURN) == "begun"
    pause(3)
    for target in ("host-b", "host-a"):
        migration = victim.client.act("vms", "writes", "migrate", {"target": target})
        ended = until_ended(victim, migration["id"])
        assert ended["phase"] == "completed", f"{ended['error']}\n{victim.tails(40)}"
        until_settled(victim, vm)
    assert run_in_guest(victim, vm, COMPARE) == "same" * 8
    delete(victim, vm)


@pytest.mark.slow
def test_a_stopped_vm_moves_with_its_disk(victim: Platform) -> None:
    vm = boot(victim, "cold", 62, image="disk")
    before = write_random_data(victim, vm)
    for target in ("host-b", "host-a"):
        victim.cli("vm", "stop", "cold", "--wait")
        migration = victim.client.act("vms", "cold", "migrate", {"target": target})
        ended = until_ended(victim, migration["id"])
        assert ended["phase"] == "completed", f"{ended['error']}\n{victim.tails(40)}"
        victim.until_clean()
        victim.cli("vm", "start", "cold", "--wait")
        until_settled(victim, vm)
        assert disk_sum(victim, vm) == before
    delete(victim, vm)


def begin(victim: Platform, name: str, number: int, moment: str = "disk") -> tuple[Object, Object, str]:
    """Begin to move a VM whose disk takes a while, up to where that is on its way, or where it is there and memory is
    not; return it, its migration, and the checksum of its disk."""
    vm = boot(victim, name, number, image="disk")
    before = write_random_data(victim, vm, 24)
    migration = victim.client.act("vms", name, "migrate", {"target": "host-b", "rate_limit_bytes_per_s": 4_000_000})

    def reached() -> bool:
        progress = victim.client.get("migrations", migration["id"])["progress"]
        if moment == "disk":
            return bool(progress["wire_bytes"] > 4_000_000)
        return bool(progress["disk_bytes"] and not progress["disk_remaining_bytes"] and progress["total_bytes"])

    until(reached, f"{moment} is on its way")
    return vm, migration, before


SLOW = [(what, moment) for what in ("source agent", "target agent", "source qemu", "target qemu")
        for moment in ("disk", "memory") if (what, moment) != ("source agent", "disk")]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "moment"), [("source agent", "disk"), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_a_kill_during_the_transfer_of_disk_or_memory_loses_nothing(victim: Platform, what: str, moment: str) -> None:
    name = what.replace(" ", "-")
    vm, migration, before = begin(victim, name, 63, moment)
    kill(victim, what, vm, "host-a", "host-b")
    pause(1)
    revive(victim)
    ended = until_ended(victim, migration["id"])
    assert ended["phase"] == "failed" and ended["error"]
    assert until_settled(victim, vm)["node"] == "host-a"
    if what == "source qemu":
        until(lambda: victim.console_log(vm, "host-a").count("tiny guest: ready") == 1, "it has booted again", 60)
    assert disk_sum(victim, vm) == before
    victim.cli("vm", "migrate", name, "--to", "host-b")
    until_settled(victim, vm)
    assert disk_sum(victim, vm) == before
    delete(victim, vm)


def test_an_abort_during_the_disk_transfer_leaves_the_vm_as_it_was(victim: Platform) -> None:
    vm, migration, before = begin(victim, "aborted", 64)
    victim.cli("migration", "abort", migration["id"])
    assert until_ended(victim, migration["id"])["phase"] == "aborted"
    assert until_settled(victim, vm)["node"] == "host-a"
    assert disk_sum(victim, vm) == before
    delete(victim, vm)


@contextlib.contextmanager
def small_disk(victim: Platform, node: str, mib: int) -> Iterator[None]:
    """Let a node have this little room for its VMs, for as long as the block runs."""
    place = str(victim.directory / node / "agent" / "vms")

    def restarted(*command: str) -> None:
        victim.agents[node].kill()
        subprocess.run(command, check=True)
        revive(victim)

    restarted("mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "small", place)
    try:
        yield
    finally:
        restarted("umount", place)


@pytest.mark.slow
@pytest.mark.parametrize("midway", [False, True], ids=["from the start", "midway"])
def test_a_target_without_space_says_so_and_the_vm_keeps_running_at_the_source(victim: Platform, midway: bool) -> None:
    vm = boot(victim, "large", 66, image="disk")
    before = write_random_data(victim, vm, 24)
    with small_disk(victim, "host-b", 48 if midway else 8):
        migration = victim.client.act(
            "vms", "large", "migrate", {"target": "host-b", "rate_limit_bytes_per_s": 4_000_000}
        )  # fmt: skip
        if midway:
            place = victim.directory / "host-b" / "agent" / "vms"
            until(
                lambda: victim.client.get("migrations", migration["id"])["progress"]["wire_bytes"], "it is on its way"
            )
            with contextlib.suppress(OSError):
                (place / "filled").write_bytes(bytes(48 << 20))
            ended = until_ended(victim, migration["id"])
            (place / "filled").unlink()
        ended = until_ended(victim, migration["id"])
        assert ended["phase"] == "failed" and ("space" if midway else "no space for the VM") in ended["error"]
        assert midway or ended["progress"]["wire_bytes"] < 1 << 20, "next to nothing was sent"
        assert until_settled(victim, vm)["node"] == "host-a"
        assert disk_sum(victim, vm) == before
    victim.cli("vm", "migrate", "large", "--to", "host-b")
    until_settled(victim, vm)
    assert disk_sum(victim, vm) == before
    delete(victim, vm)


@pytest.mark.slow
def test_a_dead_link_during_the_disk_transfer_costs_the_outage(victim: Platform) -> None:
    vm, migration, before = begin(victim, "cut", 65)
    host = victim.host("host-a")
    host.cut()
    pause(10)
    host.mend()
    ended = until_ended(victim, migration["id"])
    assert ended["phase"] == "completed", f"{ended['error']}\n{victim.tails(40)}"
    assert ended["progress"]["resumed"] >= 1
    assert until_settled(victim, vm)["node"] == "host-b"
    assert disk_sum(victim, vm) == before
    delete(victim, vm)
