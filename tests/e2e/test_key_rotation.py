"""Each of the platform's keys is rotated while everything goes on: requests, a console, a guest's connection, moves."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator

import pytest

from lab.platform import Object, Platform, until
from novacron import pki
from novacron.client import ApiError, Client, Unreachable, load_config
from tests.e2e.conftest import boot, delete, until_counts_on, until_settled, watching
from tests.waiting import pause

PHASES_S_MAX = 60.0
BETWEEN_S = 0.05


class Traffic:
    """Reads, writes and repeated writes, one after the other, each of which must succeed at its first attempt."""

    def __init__(self, vm: str) -> None:
        self.done, self.failed = 0, list[str]()
        self._vm, self._over = vm, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._repeated = uuid.uuid4().hex
        """A key that was first used before any rotation."""

    def _run(self) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            try:
                with Client(load_config()) as client:  # with the authorities that its context trusts by now
                    list(client.list("vms"))
                    client.request("PATCH", f"/api/v1/vms/{self._vm}", {"start_order": number % 100})
                    for key in (self._repeated, uuid.uuid4().hex):
                        client.request("POST", "/api/v1/nodes/host-a/actions/uncordon", Idempotency_Key=key)
                self.done += 1
            except (ApiError, Unreachable) as error:
                self.failed.append(str(error))
            pause(BETWEEN_S)

    @contextlib.contextmanager
    def running(self) -> Iterator[Traffic]:
        self._thread.start()
        try:
            yield self
        finally:
            self._over.set()
            self._thread.join(60)


def key(victim: Platform, name: str) -> Object:
    return next(key for key in victim.client.list("keys") if key["name"] == name)


def until_phase(victim: Platform, name: str, phase: str) -> None:
    until(lambda: key(victim, name)["phase"] == phase, f"{name} is {phase}: {key(victim, name)}", PHASES_S_MAX)


class AtConsole:
    """``novacron vm console``, typed at."""

    def __init__(self, victim: Platform, vm: str) -> None:
        environment = {"NOVACRON_CONFIG": str(victim.config), "PATH": "/usr/bin:/bin"}
        command = [sys.executable, "-m", "novacron", "vm", "console", vm]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        os.set_blocking(self._stdout.fileno(), False)
        self._heard, self._asked = b"", 0

    def until_answers(self) -> None:
        """Type until the guest's shell answers; what is typed at a moment without a connection is lost."""
        self._asked += 1
        wanted = f"heard {self._asked}".encode()

        def answered() -> bool:
            assert self.process.poll() is None, self.process.communicate()[1]
            self._stdin.write(f"echo he''ard {self._asked}\n".encode())
            self._stdin.flush()
            pause(0.5)
            self._heard += self._stdout.read() or b""
            return wanted in self._heard

        until(answered, "the guest's shell answers", 60)

    @contextlib.contextmanager
    def open(self) -> Iterator[AtConsole]:
        try:
            yield self
        finally:
            self.process.kill()
            self.process.communicate()


@pytest.mark.slow
def test_every_key_is_rotated_under_load_and_nothing_fails(victim: Platform) -> None:
    vm = boot(victim, "goes-on", 41, node="host-b", memory_mib=128)
    stays = boot(victim, "stays", 42, node="host-a", memory_mib=128)
    state = victim.directory / "s" / "server"
    first = pki.authority_hash((state / "ca.crt").read_bytes())
    with (
        watching(victim, 41) as client,
        AtConsole(victim, "stays").open() as console,
        Traffic(stays["id"]).running() as traffic,
    ):
        until(lambda: traffic.done > 3, "there is traffic")
        for name in ("page", "seal", "idempotency"):
            victim.cli("key", "rotate", name)
            victim.cli("vm", "migrate", "goes-on", "--to", "host-a", "--wait")
            until_phase(victim, name, "overlapping")
            victim.cli("vm", "migrate", "goes-on", "--to", "host-b", "--wait")
            if name != "page":
                assert victim.cli("key", "finish", name, check=False).returncode == 4, "it is needed for a while"
            victim.cli("key", "finish", name, *(() if name == "page" else ("--force",)))
            assert key(victim, name)["generations"] == [2]
        console.until_answers()
        victim.cli("key", "rotate", "ca")
        moving = victim.client.act("vms", vm["id"], "migrate", {"target": "host-a"})
        until_phase(victim, "ca", "overlapping")
        until(lambda: not key(victim, "ca")["waits_for"], "nodes have new certificates", PHASES_S_MAX)
        until(lambda: victim.client.get("migrations", moving["id"])["finished_at"], "the move ends", 120)
        assert victim.client.get("migrations", moving["id"])["phase"] == "completed"
        victim.cli("vm", "migrate", "goes-on", "--to", "host-b", "--wait")
        console.until_answers()
        assert "trusts 2 authorities" in victim.cli("context", "trust").stdout
        victim.cli("key", "finish", "ca")
        until_phase(victim, "ca", "steady")
        console.until_answers()
        until_counts_on(victim, client, vm)
        console.until_answers()
        assert traffic.failed == [] and traffic.done > 20
    victim._client = None  # with the settings as they are by now
    new = pki.authority_hashes((state / "ca.crt").read_bytes())
    assert first not in new and len(new) == 1
    for name in victim.agents:
        identity = victim.directory / name / "agent" / "identity"
        until(lambda: pki.authority_hashes((identity / "ca.crt").read_bytes()) == new, f"{name} trusts one CA")  # noqa: B023
        assert pki.pem_issuer_of((identity / "node.crt").read_bytes(), (identity / "ca.crt").read_bytes()) == new[0]
    victim.cli("context", "trust")
    pid = until_settled(victim, vm)["status"]["pid"]
    for service in (victim.server, *victim.agents.values()):
        service.stop()
        service.start()
    victim.wait_ready()
    for name in victim.agents:
        victim.wait_node(name)
    assert until_settled(victim, vm)["status"]["pid"] == pid, "its QEMU is found by an agent with another CA"
    victim.cli("vm", "migrate", "goes-on", "--to", "host-a", "--wait")
    for each in (vm, stays):
        delete(victim, each)
