"""kill -9 of every process at every step: the platform converges without a hand, and nothing is left over."""

from __future__ import annotations

import itertools
import random

import pytest

from lab.platform import Platform, until
from tests.chance import new_seed
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
from tests.waiting import pause

VICTIMS = ("server", "postgres", "source agent", "target agent", "source qemu", "target qemu")
MOMENTS = {
    "it was requested": None,
    "the target prepares": ("host-b", "preparing"),
    "memory flows": ("host-b", "transferring"),
    "the guest stands still": ("host-a", "guest stands still"),
    "the source has promised": ("host-a", "promised not to run it"),
    "the target has everything": ("host-b", "everything is loaded"),
    "the guest goes on at the target": ("host-b", '"step": "continue"'),
}
QUICK = {
    ("postgres", "the guest stands still"),
    ("source agent", "memory flows"),
    ("target agent", "the target has everything"),
    ("source qemu", "memory flows"),
    ("target qemu", "the target has everything"),
}  # fmt: skip
"""What every run tries; the others are in the slow matrix."""

_numbers = itertools.count(40)


def next_number() -> int:
    """Return the last byte of an address that no VM of this module has."""
    return 40 + next(_numbers) % 200


CASES = [
    pytest.param(victim, moment, marks=() if (victim, moment) in QUICK else pytest.mark.slow)
    for victim in VICTIMS
    for moment in MOMENTS
]


@pytest.mark.parametrize(("what", "moment"), CASES)
def test_a_kill_during_a_migration_leaves_one_running_vm(victim: Platform, what: str, moment: str) -> None:
    number = next_number()
    vm = boot(victim, f"mover-{number}", number, image="noisy")
    since = {name: agent.log.stat().st_size for name, agent in victim.agents.items()}
    with watching(victim, number) as client:
        until(lambda: client.last > 0, "the guest counts")
        migration = victim.client.act("vms", vm["id"], "migrate", {"target": "host-b"})
        wait_for_moment(victim, moment, migration, since)
        kill(victim, what, vm, "host-a", "host-b")
        revive(victim)
        ended = until_ended(victim, migration["id"])
        settled = until_settled(victim, vm)
        assert settled["node"] == ("host-b" if ended["phase"] == "completed" else "host-a"), ended
        assert ended["phase"] == "completed" or ended["error"], "a failure says why"
        if "qemu" not in what:  # its guest was never harmed, so it is the same one, wherever it is now
            until_counts_on(victim, client, vm)
    delete(victim, vm)


def wait_for_moment(victim: Platform, moment: str, migration: Object, since: dict[str, int]) -> None:
    step = MOMENTS[moment]
    if step is None:
        return
    service, text = step
    if text in ("preparing", "transferring"):
        order = ("pending", "preparing", "transferring", "completed")
        # A write waits a second at most until it can be read; reads of this revision wait for longer.
        path = f"/api/v1/migrations/{migration['id']}?min_revision={migration['revision']}"

        def reached() -> bool:
            current = victim.client.request("GET", path)
            moved = text == "preparing" or current["progress"]["wire_bytes"] > 1_000_000
            return moved and order.index(current["phase"]) >= order.index(text)

        until(reached, f"migration {migration['id']} is {text}")
    else:
        until_logged(victim, service, text, since[service])


@pytest.mark.parametrize(
    ("first", "second"),
    [("source qemu", "server"), pytest.param("target agent", "postgres", marks=pytest.mark.slow),
     pytest.param("source agent", "target qemu", marks=pytest.mark.slow)],
)  # fmt: skip
def test_two_kills_at_once_leave_one_running_vm(victim: Platform, first: str, second: str) -> None:
    vm = boot(victim, f"mover-{next_number()}", next_number(), image="noisy")
    migration = victim.client.act("vms", vm["id"], "migrate", {"target": "host-b"})
    wait_for_moment(victim, "memory flows", migration, {})
    for what in (first, second):
        kill(victim, what, vm, "host-a", "host-b")
    pause(1)  # a while without them: what is said meanwhile is lost
    revive(victim)
    assert until_ended(victim, migration["id"])["phase"] == "failed"
    assert until_settled(victim, vm)["node"] == "host-a"
    delete(victim, vm)


@pytest.mark.parametrize("delay_s", [0.1, *(pytest.param(delay_s, marks=pytest.mark.slow) for delay_s in (0.0, 0.3))])
@pytest.mark.parametrize("what", ["server", "postgres", "source agent", "source qemu"])
def test_a_kill_during_a_create_ends_with_a_running_vm(victim: Platform, what: str, delay_s: float) -> None:
    vm = victim.client.create_vm(name=f"new-{next_number()}", image="tiny", memory_mib=128, node="host-a")
    pause(delay_s)
    kill(victim, what, vm, "host-a", "host-b")
    revive(victim)
    until_settled(victim, vm)
    delete(victim, vm)


@pytest.mark.parametrize("delay_s", [0.03, *(pytest.param(delay_s, marks=pytest.mark.slow) for delay_s in (0.0, 0.1))])
@pytest.mark.parametrize("what", ["server", "postgres", "source agent", "source qemu"])
def test_a_kill_during_a_delete_leaves_nothing(victim: Platform, what: str, delay_s: float) -> None:
    vm = victim.client.create_vm(name=f"old-{next_number()}", image="tiny", memory_mib=128, node="host-a")
    victim.wait_state(vm["id"], "running")
    victim.client.delete("vms", vm["id"])
    pause(delay_s)
    kill(victim, what, vm, "host-a", "host-b")
    revive(victim)
    until(lambda: all(v["id"] != vm["id"] for v in victim.client.list("vms")), "it is gone", 60)
    victim.until_clean()


def test_a_restarted_agent_adopts_its_running_vms(victim: Platform) -> None:
    number = next_number()
    vm = boot(victim, "adopted", number)
    pid = victim.client.get("vms", vm["id"])["status"]["pid"]
    with watching(victim, number) as client:
        for end in (victim.agents["host-a"].kill, victim.agents["host-a"].stop):
            end()
            revive(victim)
            assert until_settled(victim, vm)["status"]["pid"] == pid
        until_counts_on(victim, client, vm)
    delete(victim, vm)


def test_a_vm_deleted_while_its_host_was_away_is_removed_when_it_is_back(victim: Platform) -> None:
    vm = boot(victim, "forgotten", next_number())
    victim.agents["host-a"].kill()
    victim.client.delete("vms", vm["id"])
    assert any(v["id"] == vm["id"] for v in victim.client.list("vms")), "it is not gone before its QEMU is"
    revive(victim)
    until(lambda: all(v["id"] != vm["id"] for v in victim.client.list("vms")), "it is gone", 60)
    victim.until_clean()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_at_random_moments(victim: Platform) -> None:
    seed = new_seed()
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(40):
        number = next_number()
        vm = boot(victim, f"random-{number}", number, image="noisy")
        migration = victim.client.act("vms", vm["id"], "migrate", {"target": "host-b"})
        for what in rng.sample(VICTIMS, rng.choice((1, 1, 2))):
            pause(rng.uniform(0, 2.5))
            kill(victim, what, vm, "host-a", "host-b")
        revive(victim)
        until_ended(victim, migration["id"])
        until_settled(victim, vm)
        delete(victim, vm)
