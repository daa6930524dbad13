"""A whole platform over the weeks in which its certificates end: all of its clocks are moved, its guests run on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from lab.hosts import Lab
from lab.platform import Object, Platform, open_directory, platform, until
from novacron import child_environment, pki, private_file
from tests.e2e.conftest import boot, migrate_once_peers_answer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DAY_S = 86_400.0
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
BEGINS, NODES_END_SOON, NODES_ENDED = -32.0, -15.0, 0.0
"""Days from today at which the platform's clocks are: in the past, as this process verifies what it is shown today."""
AUTHORITY_DUE_AFTER_DAYS = 10.0


class Calendar(NamedTuple):
    """The clocks of all processes of the platform; the monotonic ones go on as they do."""

    file: Path

    def move(self, days: float) -> None:
        scratch = self.file.with_suffix(".new")
        scratch.write_text(f"{days * DAY_S:+.0f}")
        scratch.chmod(0o644)
        scratch.replace(self.file)

    def now_s(self) -> float:
        return time.time() + float(self.file.read_text())


@pytest.fixture
def calendar(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calendar]:
    """What is started from now on has its clock; PostgreSQL, too."""
    with open_directory("nvc-") as directory:
        calendar = Calendar(directory / "shift")
        calendar.move(BEGINS)
        moved = {
            "LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": str(calendar.file), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip
        for name, value in moved.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(child_environment, "KEPT", (*child_environment.KEPT, *moved))
        yield calendar


@pytest.fixture
def old(calendar: Calendar, wan: Lab, images: Path) -> Iterator[Platform]:
    """A platform whose authority is renewed at the next start after some days."""
    days = pki.CA_DAYS * (1 - pki.RENEW_BELOW["authority"]) - AUTHORITY_DUE_AFTER_DAYS
    directory = calendar.file.parent / "p"
    pki.Authority.open(directory / "s" / "server", lambda: calendar.now_s() - days * DAY_S)
    with platform(directory, wan, images) as running:
        yield running


def identity(p: Platform, node: str) -> Path:
    return p.directory / node / "agent" / "identity"


def ends_at_s(certificate: Path) -> float:
    return pki.expires_at_s(certificate.read_bytes())


def restart_server(p: Platform) -> None:
    """As an update does: what it has to say of certificates it says at its start."""
    p.server.stop()
    p.server.start()
    p.wait_ready()


def reasons(p: Platform, object_: str) -> set[str]:
    return {event["reason"] for event in p.client.list("events", object=object_)}


def rejoin(p: Platform, node: str) -> str:
    """Give a node another certificate, as an operator does, and return what was said."""
    token = p.directory / "token"
    private_file.write(token, p.client.join_token(node).encode())
    command = [sys.executable, "-m", "novacron", "agent", "--state-dir", str(p.directory / node)]
    done = subprocess.run(
        [*p.host(node).enter, *command, "--rejoin", f"@{token}"],
        check=True, capture_output=True, text=True, timeout=120, env=p.server.env,
    )  # fmt: skip
    return done.stdout


def refusal(p: Platform) -> str:
    """Return what a command says that can't be done; empty: it was done."""
    done = p.cli("node", "list", check=False)
    return done.stderr if done.returncode else ""


def is_untouched(p: Platform, vm: Object) -> bool:
    """Say whether the guest never noticed anything: it is the process that it was."""
    now = p.client.get("vms", vm["id"])["status"]
    return bool(now["crashes"] == 0 and now["pid"] == vm["status"]["pid"])


def test_certificates_are_warned_of_and_renewed_and_those_that_ended_stop_what_is_documented(
    old: Platform, calendar: Calendar
) -> None:
    for number, name, node in ((80, "stays", "host-a"), (81, "is-away", "host-b")):
        boot(old, name, number, node=node, memory_mib=128)
    stays, away = (old.wait_state(name, "running") for name in ("stays", "is-away"))
    qemus, authority = old.qemus(), old.directory / "s" / "server" / "ca.crt"
    assert len(qemus) == 2
    authority_ended_s, node_ended_s = ends_at_s(authority), ends_at_s(identity(old, "host-a") / "node.crt")

    # One host is off while certificates come near their end: it is warned of, all others are renewed.
    old.agents["host-b"].kill()
    calendar.move(NODES_END_SOON)
    restart_server(old)
    old.wait_node("host-a")
    until(lambda: "CertificateEnding" in reasons(old, "host-b"), "the host that is off is warned of", 60)
    assert "CertificateEnded" not in reasons(old, "host-b")
    until(lambda: ends_at_s(identity(old, "host-a") / "node.crt") > node_ended_s, "the other host is renewed", 60)
    assert ends_at_s(identity(old, "host-a") / "node.crt") > calendar.now_s() + (pki.NODE_DAYS - 1) * DAY_S
    assert ends_at_s(authority) > authority_ended_s, "the server has renewed its authority"
    until(lambda: (identity(old, "host-a") / "ca.crt").read_bytes() == authority.read_bytes(), "the node has it", 60)
    assert old.qemus() == qemus and is_untouched(old, stays)

    # Its certificate ends: it is refused, nothing moves to it, and its VM runs on until it has joined again.
    calendar.move(NODES_ENDED)
    restart_server(old)
    old.wait_node("host-a")
    log = old.agents["host-b"].log
    began = log.stat().st_size
    old.agents["host-b"].start()
    until(lambda: "this node's certificate ended on" in log.read_text()[began:], "its agent says why it is refused", 60)
    until(lambda: "CertificateEnded" in reasons(old, "host-b"), "it is said that it has ended", 60)
    moved = old.cli("vm", "migrate", "stays", "--to", "host-b", "--wait", check=False)
    assert moved.returncode != 0 and old.qemus() == qemus
    assert "host-b has a certificate until" in rejoin(old, "host-b")
    old.wait_node("host-b")
    old.wait_state(away["id"], "running")
    assert old.qemus() == qemus and is_untouched(old, away)
    migrate_once_peers_answer(old, "is-away", "host-a")
    assert old.client.get("vms", away["id"])["status"]["crashes"] == 0

    # A server that could not renew its own is refused by commands, which say what helps; VMs run on without it.
    running, server = old.qemus(), old.directory / "s" / "server"
    late = pki.Authority.open(server, lambda: time.time() - (pki.SERVER_DAYS + 1) * DAY_S)
    late.reissue_server(server, ["127.0.0.1"])
    until(lambda: "systemctl restart novacron-server" in refusal(old), "commands refuse the server", 60)
    assert "the server's certificate" in refusal(old)
    restart_server(old)
    for node in ("host-a", "host-b"):
        old.wait_node(node)
    assert old.cli("node", "list").returncode == 0 and old.qemus() == running
