"""Certificates that end, with a real server: who is told what, and how a node gets another one in place."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import urllib3
from structlog.testing import capture_logs

from lab.replicas import Served, serving
from novacron import pki, private_file
from novacron.agent import identity as identities
from novacron.agent.identity import Identity
from novacron.client import AsyncClient, Client, Config, Unreachable
from novacron.control import certificates
from novacron.control.objects import Objects
from novacron.model.errors import InvalidInput
from novacron.model.token import decode_ticket
from novacron.server import certificates as server_certificates
from novacron.store import identities as stored
from novacron.store import nodes
from novacron.store.database import Database
from novacron.wire import codec
from novacron.wire import messages as wire
from tests.integration.test_link import INVENTORY, Node, Server
from tests.waiting import eventually

DAY_S = 86_400.0
REFUSES = "the server refuses this node"
HAS = {"cpus": INVENTORY.cpus, "memory_mib": INVENTORY.memory_mib}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as served:
        yield served


async def joined(client: Client, directory: Path, name: str) -> Identity:
    ticket = decode_ticket(await asyncio.to_thread(client.join_token, name, 3600, True))
    return await asyncio.to_thread(identities.join, directory / "agent" / "identity", ticket, name)


def let_end(served: Served, identity: Identity) -> None:
    """Give a node a certificate that was issued a month and a day ago."""
    authority = pki.Authority.open(served.replicas[0].state, lambda: time.time() - (pki.NODE_DAYS + 1) * DAY_S)
    pki.write_secret(identity.certificate, authority.issue_node(identity.request(identity.name), identity.name))


async def node_of(client: Client, name: str) -> dict[str, Any]:
    return await asyncio.to_thread(client.get, "nodes", name)


async def reasons(client: Client, name: str) -> list[str]:
    listed = await asyncio.to_thread(lambda: list(client.list("events", object=name)))
    return [event["reason"] for event in listed]


async def test_an_agent_whose_certificate_has_ended_says_so_and_goes_on_once_it_has_rejoined(
    served: Served, tmp_path: Path
) -> None:
    client = served.client
    identity = await joined(client, tmp_path, "host-late")
    key, before = identity.key.read_bytes(), await node_of(client, "host-late")
    let_end(served, identity)
    node = Node(identity)
    async with asyncio.timeout(60), node.running():
        with capture_logs() as logged:
            await eventually(lambda: any(entry["event"] == REFUSES for entry in logged), "it is refused")
        said = next(entry for entry in logged if entry["event"] == REFUSES)
        assert "this node's certificate ended on" in said["reason"]
        assert "--node host-late" in said["hint"] and "novacron agent --rejoin @FILE" in said["hint"]
        assert (await node_of(client, "host-late"))["status"]["inventory"] is None, "it was not let in"
        token = await asyncio.to_thread(client.join_token, "host-late")
        await asyncio.to_thread(identities.rejoin, identity.directory, decode_ticket(token))
        await eventually(lambda: node.link.connected, "the running agent uses the new certificate")
        await eventually(lambda: _ready(client, "host-late"), "the node is ready")
    after = await node_of(client, "host-late")
    assert identity.key.read_bytes() == key
    assert after["created_at"] == before["created_at"] and after["spec"] == {**before["spec"], "capacity": HAS}
    assert after["status"]["certificate_ends_at_s"] > time.time() + (pki.NODE_DAYS - 1) * DAY_S
    assert "Rejoined" in await reasons(client, "host-late")
    assert "this node's certificate" in served.server.log.read_text(), "why it refuses is in its log"


async def _ready(client: Client, name: str) -> bool:
    return bool((await node_of(client, name))["status"]["ready"])


async def test_a_node_that_was_renamed_while_it_was_away_rejoins_under_its_new_name(
    served: Served, tmp_path: Path
) -> None:
    identity = await joined(served.client, tmp_path, "host-was")
    await asyncio.to_thread(served.client.rename_node, "host-was", "host-is")
    let_end(served, identity)
    token = await asyncio.to_thread(served.client.join_token, "host-is")
    rejoined = await asyncio.to_thread(identities.rejoin, identity.directory, decode_ticket(token))
    assert rejoined.name == "host-is"
    names = [node["name"] for node in await asyncio.to_thread(lambda: list(served.client.list("nodes")))]
    assert "host-is" in names and "host-was" not in names


async def test_a_token_for_another_node_or_a_used_one_does_not_let_a_node_rejoin(
    served: Served, tmp_path: Path
) -> None:
    identity = await joined(served.client, tmp_path, "host-mine")
    before = identity.certificate.read_bytes()
    other = decode_ticket(await asyncio.to_thread(served.client.join_token, "host-other"))
    with pytest.raises(InvalidInput, match="wrong, used, expired or for another node"):
        await asyncio.to_thread(identities.rejoin, identity.directory, other)
    used = decode_ticket(await asyncio.to_thread(served.client.join_token, "host-mine"))
    await asyncio.to_thread(identities.rejoin, identity.directory, used)
    with pytest.raises(InvalidInput, match="used"):
        await asyncio.to_thread(identities.rejoin, identity.directory, used)
    assert identity.certificate.read_bytes() != before
    with pytest.raises(InvalidInput, match="has not joined yet"):
        identities.rejoin(tmp_path / "nothing", used)


async def test_a_join_token_is_used_by_a_node_whose_certificate_has_ended_and_by_no_other(
    served: Served, tmp_path: Path
) -> None:
    identity = await joined(served.client, tmp_path, "host-again")
    before = identity.certificate.read_bytes()
    token = await asyncio.to_thread(served.client.join_token, "host-again")
    await asyncio.to_thread(identities.renewed_at_start, identity, identities.JoinOffer(token=token))
    assert identity.certificate.read_bytes() == before, "it is good: the token is kept"
    let_end(served, identity)
    await asyncio.to_thread(identities.renewed_at_start, identity, identities.JoinOffer(token=token))
    assert identity.objection() is None
    let_end(served, identity)
    with capture_logs() as logged:  # its VMs need an agent, with a certificate or without
        assert (
            await asyncio.to_thread(identities.renewed_at_start, identity, identities.JoinOffer(token=token))
        ).name == "host-again"
    assert any(entry["event"] == "can't join again" and "used" in entry["error"] for entry in logged)


async def test_the_command_rejoins_while_the_agent_runs(served: Served, tmp_path: Path) -> None:
    identity = await joined(served.client, tmp_path, "host-command")
    let_end(served, identity)
    token = await asyncio.to_thread(served.client.join_token, "host-command")
    private_file.write(tmp_path / "token", token.encode() + b"\n")
    command = [sys.executable, "-m", "novacron", "agent", "--state-dir", str(tmp_path), "--rejoin"]

    def run(argument: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, argument], check=False, capture_output=True, text=True, timeout=60)

    done = await asyncio.to_thread(run, f"@{tmp_path / 'token'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("node host-command has a certificate until 20")
    assert identity.objection() is None
    again = await asyncio.to_thread(run, f"@{tmp_path / 'token'}")
    assert again.returncode == 1 and "used" in again.stderr and "novacron node join-token" in again.stderr


@pytest.mark.parametrize("which", ["server", "authority"])
async def test_an_agent_names_the_certificate_of_the_other_end_that_has_ended(tmp_path: Path, which: str) -> None:
    days = {"server": pki.SERVER_DAYS, "authority": pki.CA_DAYS}[which]

    def clock() -> float:
        return time.time() - (days + 1) * DAY_S

    if which == "authority":
        pki.Authority.open(tmp_path / "server", clock)
    server = Server(tmp_path)
    if which == "server":
        pki.Authority.open(tmp_path / "server", clock).issue_server(tmp_path / "server", ["127.0.0.1"])
    async with asyncio.timeout(30), server.listening():
        node = Node(server.identity(tmp_path / "node"))
        with capture_logs() as logged:
            async with node.running():
                await eventually(lambda: any(entry["event"] == "the link is down" for entry in logged), "it fails")
    error = next(entry["error"] for entry in logged if entry["event"] == "the link is down")
    assert f"the {which}'s certificate" in error and "ended on 20" in error
    assert {"server": "systemctl restart novacron-server", "authority": "agent --rejoin"}[which] in error


async def test_a_renewed_authority_reaches_nodes_with_their_next_certificate(tmp_path: Path) -> None:
    pki.Authority.open(tmp_path / "server", lambda: time.time() - pki.CA_DAYS * DAY_S * 0.9)
    server = Server(tmp_path)
    identity = server.identity(tmp_path / "node")
    assert server.authority.renew() and identity.ca.read_bytes() != server.authority.pem
    async with (
        asyncio.timeout(30),
        server.listening(),
        Node(msgspec.structs.replace(identity, link_url=server.url)).running(),
    ):
        link = await server.connected.get()
        certificate = server.authority.issue_node(identity.request("host-a"), "host-a")
        await link.send(codec.encode(wire.CertificateIssued(certificate, server.authority.pem)))
        await eventually(lambda: identity.certificate.read_bytes() == certificate, "it is stored")
    assert identity.ca.read_bytes() == server.authority.pem
    with pytest.raises(ValueError, match="none of these certificate authorities"):
        identity.trust(pki.Authority.open(tmp_path / "other").pem)
    assert identity.ca.read_bytes() == server.authority.pem


async def test_the_control_plane_warns_once_a_day_of_certificates_that_end(database: Database) -> None:
    ends_in_s = {"fresh": 20 * DAY_S, "soon": 13 * DAY_S, "over": -DAY_S, "forgotten": -20 * DAY_S}
    async with database.transaction() as connection:
        for name, left_s in ends_in_s.items():
            await stored.join(connection, name, f"key of {name}")
            await nodes.certified(connection, name, time.time() + left_s, "")
    for _ in range(3):
        await certificates.step(database, Objects("certificates"))
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT name, reason, message FROM events WHERE reason LIKE 'Certificate%'")
    told = {row["name"]: row for row in rows}
    assert len(rows) == 2 and told.keys() == {"soon", "over"}
    assert told["soon"]["reason"] == "CertificateEnding" and told["over"]["reason"] == "CertificateEnded"
    assert "novacron node join-token --node over, then on its host: novacron agent --rejoin" in told["over"]["message"]


async def test_a_server_takes_another_certificate_into_use_while_it_runs() -> None:
    with serving("--workers", "2") as own:
        state, api_url = own.replicas[0].state, own.replicas[0].url
        link_url = decode_ticket(own.client.join_token("host-a", accept=True)).link_url
        with _open_stream(own):
            pki.Authority.open(state, lambda: time.time() - 100 * DAY_S).reissue_server(state, ["127.0.0.1"])
            ends_at_s = pki.expires_at_s((state / "server.crt").read_bytes())
            for url in (api_url, link_url):
                await eventually(
                    lambda url=url: all(_answers(own) and _shown(url) == ends_at_s for _ in range(8)),  # type: ignore[misc]
                    "all processes use it", 60,
                )  # fmt: skip
            assert list(own.client.list("nodes")) == [], "a connection that was open before"
            _check_workers_secrets(own)
            began = time.monotonic()
            own.server.stop()
            assert time.monotonic() - began < 30, "a stream that is still open does not keep it from ending"


def _check_workers_secrets(served: Served) -> None:
    """Workers get the database's URL, which may hold a password, neither as argument nor in the environment."""
    assert served.server.process is not None
    pid = served.server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    commands = {child: Path(f"/proc/{child}/cmdline").read_text() for child in children}
    workers = [child for child, command in commands.items() if "novacron.server.workers" in command]
    assert workers
    for child in workers:
        assert "postgresql" not in commands[child] + Path(f"/proc/{child}/environ").read_text()


def _shown(url: str) -> float | None:
    """Return until when the certificate is valid that a server shows; None if it ended the connection unanswered.

    The API's listeners are replaced to use another certificate: what one of them has accepted, and has not yet read
    from, ends with it.
    """
    try:
        return pki.served_validity(url, 5.0).ends_at_s
    except (ConnectionError, ssl.SSLError, TimeoutError):
        return None


def _answers(served: Served) -> bool:
    """Send a request over a new connection, as a program does; raises if it fails at any time."""
    with Client(served.client.config) as client:
        return bool(client.me())


@contextlib.contextmanager
def _open_stream(served: Served) -> Iterator[None]:
    """Follow the events of a server meanwhile."""
    context = ssl.create_default_context(cadata=served.client.config.ca)
    headers = {"Authorization": f"Bearer {served.client.config.token}", "Accept": "text/event-stream"}
    with urllib3.PoolManager(ssl_context=context) as pool:
        response = pool.request(
            "GET", f"{served.client.config.url}/api/v1/events", headers=headers, preload_content=False, retries=False
        )
        assert response.status == 200
        yield
        response.close()


def test_certificates_of_server_and_authority_are_renewed_in_time_and_only_then(tmp_path: Path) -> None:
    def aged(days: float) -> pki.Authority:
        return pki.Authority.open(tmp_path, lambda: time.time() - days * DAY_S)

    aged(pki.CA_DAYS * 0.7).issue_server(tmp_path, ["127.0.0.1"])
    aged(pki.SERVER_DAYS * 0.6).issue_server(tmp_path, ["127.0.0.1"])
    now = pki.Authority.open(tmp_path)
    assert server_certificates.renew(now, tmp_path, ["127.0.0.1"]) == []
    aged(pki.SERVER_DAYS * 0.7).issue_server(tmp_path, ["127.0.0.1"])
    assert server_certificates.renew(now, tmp_path, ["127.0.0.1"]) == ["server"]
    assert pki.expires_at_s((tmp_path / "server.crt").read_bytes()) > time.time() + (pki.SERVER_DAYS - 1) * DAY_S
    old = tmp_path / "old"
    pki.Authority.open(old, lambda: time.time() - pki.CA_DAYS * DAY_S * 0.9).issue_server(old, ["127.0.0.1"])
    assert server_certificates.renew(pki.Authority.open(old), old, ["127.0.0.1"]) == ["authority", "server"]
    assert server_certificates.renew(pki.Authority.open(old), old, ["127.0.0.1"]) == []


@pytest.mark.parametrize("which", ["server", "authority"])
async def test_a_client_names_the_certificate_that_has_ended_and_the_command(tmp_path: Path, which: str) -> None:
    days = {"server": pki.SERVER_DAYS, "authority": pki.CA_DAYS}[which]
    ended = pki.Authority.open(tmp_path / which, lambda: time.time() - (days + 1) * DAY_S)
    if which == "server":
        pki.write_secret(tmp_path / "server" / "ca.key", (tmp_path / which / "ca.key").read_bytes())
    server = Server(tmp_path)
    ended.issue_server(tmp_path / "server", ["127.0.0.1"])
    async with asyncio.timeout(60), server.listening():
        ca = (tmp_path / which / "ca.crt").read_text()
        config = Config(server.url, "token", ca)
        for failed in (
            await asyncio.to_thread(_failure, lambda: list(Client(config).list("nodes"))),
            await _failure_of(config),
        ):
            assert "ended on 20" in failed and "HTTP response" not in failed
            assert f"the {which}'s certificate" in failed
            assert {"server": "systemctl restart novacron-server", "authority": "novacron context add"}[which] in failed


def _failure(call: Callable[[], object]) -> str:
    with pytest.raises(Unreachable) as failed:
        call()
    return str(failed.value)


async def _failure_of(config: Config) -> str:
    async with AsyncClient(config) as client:
        with pytest.raises(Unreachable) as failed:
            await client.get("nodes", "any")
    return str(failed.value)
