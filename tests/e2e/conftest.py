"""Moves of VMs, watched from outside."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.guest import CounterClient
from lab.platform import Platform, until
from tests.waiting import pause

ENDED = ("completed", "failed", "aborted")
TYPE_AGAIN_S = 5.0

Object = dict[str, Any]


def boot(
    victim: Platform, name: str, number: int, node: str = "host-a", memory_mib: int = 256, image: str = "tiny"
) -> Object:
    """Create a VM with an address of its own, and wait until its guest is up."""
    vm = victim.client.create_vm(
        name=name, image=image, memory_mib=memory_mib, node=node, address=f"198.19.0.{number}/24"
    )
    until(lambda: "tiny guest: ready" in victim.console_log(vm, node), f"{name} has booted", 60)
    return vm


@contextlib.contextmanager
def watching(victim: Platform, number: int) -> Iterator[CounterClient]:
    """Read the guest's counter from host-a for as long as the block runs."""
    client = CounterClient(victim.lab.hosts[0], f"198.19.0.{number}")
    try:
        yield client
    finally:
        client.close()


def until_counts_on(victim: Platform, client: CounterClient, vm: Object) -> None:
    """Wait until the same guest has counted on over the same connection, and lost nothing."""
    now = client.last
    try:
        until(lambda: client.last > now + 20, "the same guest counts on", 60)
    except AssertionError as error:
        # Is it the guest that stands still, its network, or is it another guest by now? A packet may wake the first.
        address = vm["spec"]["address"].partition("/")[0]
        nudge = victim.lab.hosts[0].within(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        nudge.sendto(b"?", (address, 9))
        nudge.close()
        pause(3)
        woken = client.last > now + 20
        shown = victim.client.get("vms", vm["id"])
        boots = victim.console_log(shown).count("tiny guest: up")
        raise AssertionError(
            f"{error}; connection: {client.broken or 'open'}; boots here: {boots}; "
            f"went on after a packet: {woken}; {shown}\n{victim.tails(30)}"
        ) from None
    assert client.broken is None and client.missing_numbers() == 0


def typed(victim: Platform, vm: Object, command: str, answer: str, timeout_s: float = 60) -> str:
    """Type a command at the guest's shell; return the line of its answer that begins with ``answer``."""
    line = re.compile(rf"^{re.escape(answer)}.*\n", re.MULTILINE)
    seen, typed_at, deadline = "", 0.0, time.monotonic() + timeout_s
    with victim.client.open_console(vm["id"]) as console:
        while time.monotonic() < deadline:
            if time.monotonic() > typed_at + TYPE_AGAIN_S:  # its shell may not have been there yet
                console.send(f"\n{command}\n".encode())
                typed_at = time.monotonic()
            with contextlib.suppress(TimeoutError):
                seen += console.recv(1).decode(errors="replace").replace("\r", "")
            if found := line.search(seen):
                return found[0]
    raise AssertionError(f"the guest does not answer {command!r}:\n{seen[-500:]}")


def migrate_once_peers_answer(victim: Platform, name: str, target: str) -> None:
    """Migrate a VM as soon as its target is no longer held for cut off: a peer that was away a moment ago may still be
    held against it."""

    def migrated() -> bool:
        done = victim.cli("vm", "migrate", name, "--to", target, "--wait", check=False)
        assert done.returncode == 0 or "(Partitioned)" in done.stderr, done.stderr
        return done.returncode == 0

    until(migrated, f"{name} moves to {target}", 90)


def until_ended(victim: Platform, migration: str, timeout_s: float = 90) -> Object:
    """Wait until a migration has ended, and return it."""

    def ended() -> Object | None:
        ended_migration = victim.client.get("migrations", migration)
        return ended_migration if ended_migration["phase"] in ENDED else None

    ended_migration: Object = until(ended, f"migration {migration} has ended", timeout_s)
    return ended_migration


def until_settled(victim: Platform, vm: Object, timeout_s: float = 90) -> Object:
    """Wait until the VM runs on the node that owns it, and nothing of it is anywhere else."""
    settled_vm = victim.wait_vm(
        vm["id"],
        lambda v: (
            v["status"]["state"] == "running"
            and v["migration"] is None
            and [key for key in victim.qemus() if vm["id"] in key] == [f"{v['node']}/{vm['id']}"]
            and v["status"]["pid"] == victim.qemus()[f"{v['node']}/{vm['id']}"]
        ),
        f"VM {vm['name']} runs in exactly one place",
        timeout_s,
    )
    victim.until_clean()
    return settled_vm


def delete(victim: Platform, vm: Object) -> None:
    """Delete a VM and check that it leaves no trace."""
    victim.client.delete("vms", vm["id"])
    try:
        until(lambda: all(v["id"] != vm["id"] for v in victim.client.list("vms")), f"{vm['name']} is deleted", 60)
    except AssertionError as error:
        raise AssertionError(f"{error}; {victim.client.get('vms', vm['id'])}\n{victim.tails(30)}") from None
    victim.until_clean()


def until_logged(victim: Platform, service: str, text: str, since: int, timeout_s: float = 30) -> None:
    """Wait until a process has logged ``text`` after byte ``since`` of its log."""
    log = victim.agents[service].log
    until(lambda: text in log.read_text(errors="replace")[since:], f"{service} says {text!r}", timeout_s)


def has_text(log: Path, text: str) -> bool:
    """Say whether a log has ``text`` in it by now."""
    return text in log.read_text(errors="replace")


def kill(victim: Platform, what: str, vm: Object, source: str, target: str) -> None:
    """Kill a process without warning: the server, an agent, PostgreSQL or a QEMU."""
    match what:
        case "server":
            victim.server.kill()
        case "postgres":
            victim.postgres.kill()
        case "source agent" | "target agent":
            victim.agents[source if what.startswith("source") else target].kill()
        case "source qemu" | "target qemu":
            host = source if what.startswith("source") else target
            pid = victim.qemus().get(f"{host}/{vm['id']}")
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):  # the agent may have ended it just now
                    os.kill(pid, signal.SIGKILL)
        case _:
            raise ValueError(what)


def revive(victim: Platform) -> None:
    """Start every killed process again."""
    if victim.postgres.process is None or victim.postgres.process.poll() is not None:
        victim.postgres.start()
    for service in (victim.server, *victim.agents.values()):
        if not service.running:
            service.start()
    victim.wait_ready()
    for name in victim.agents:
        victim.wait_node(name)
