"""A user of a host, or an operator, who wants to make a node of it."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest

from novacron import private_file
from novacron.agent import identity as identities
from novacron.model.access import RIGHTS, Right, Role
from novacron.model.errors import Conflict, InvalidInput, Unauthenticated
from novacron.model.fit import refusal
from novacron.model.node import Capacity, NodeSpec, counted
from novacron.model.token import JoinTicket, encode_ticket
from novacron.model.vm import VmSpec
from novacron.store import identities as stored
from novacron.store import leases, nodes, tokens
from novacron.store.database import Database
from tests.support.fleet import node

TICKET = JoinTicket("https://a:1", "https://a:2", "PEM", "secret")
TOKEN = encode_ticket(TICKET)


def test_a_token_on_the_command_line_is_refused_with_what_to_write() -> None:
    with pytest.raises(InvalidInput, match="every user of this host can read") as refused:
        identities.offered(TOKEN)
    hint = str(refused.value.hint)
    assert "--join @FILE" in hint and "--join -" in hint and "NOVACRON_JOIN_TOKEN" in hint and TOKEN not in hint


def test_a_token_comes_from_a_file_standard_input_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private_file.write(tmp_path / "token", TOKEN.encode() + b"\n")
    assert identities.offered(f"@{tmp_path / 'token'}").ticket() == TICKET
    monkeypatch.setattr("sys.stdin", io.StringIO(TOKEN))
    assert identities.offered("-").ticket() == TICKET
    monkeypatch.setenv("NOVACRON_JOIN_TOKEN", TOKEN)
    assert identities.offered(None).ticket() == TICKET
    assert identities.offered(None).ticket() is None, "it does not stay in the environment"


def test_a_token_in_a_file_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    private_file.write(tmp_path / "token", TOKEN.encode(), 0o644)
    with pytest.raises(InvalidInput, match="every user of this host can read"):
        identities.offered(f"@{tmp_path / 'token'}").ticket()


@pytest.mark.parametrize("role", [Role.VIEWER, Role.MEMBER, Role.OPERATOR])
def test_only_administrators_let_hosts_join(role: Role) -> None:
    assert Right.JOIN not in RIGHTS[role]


async def test_a_token_is_for_one_node(database: Database) -> None:
    async with database.transaction() as connection:
        secret = await tokens.create_join(connection, "host-a", 60, "ann", accept=False)
    async with database.transaction() as connection:
        with pytest.raises(Unauthenticated):
            await tokens.use_join(connection, secret, "host-b")
    async with database.transaction() as connection:
        assert not await tokens.use_join(connection, secret, "host-a")


async def test_a_host_that_was_not_accepted_is_given_nothing(database: Database) -> None:
    has = node("host-x", cpus=1000).status.inventory
    assert has is not None
    async with database.transaction() as connection:
        await stored.join(connection, "host-x", "key", accepted=False)
        await nodes.connected(connection, "host-x", has)
        stranger = await nodes.get(connection, "host-x")
        assert stranger.spec.cordoned and stranger.status.ready
        assert stranger.status.inventory is not None and stranger.status.inventory.images == ()
        assert "not been accepted" in str(refusal(stranger, VmSpec(image="tiny"), True))
        assert await leases.neighbours(connection) == [], "no node looks after it, and it votes for none"
        with pytest.raises(Conflict, match="has not been accepted"):
            await nodes.uncordon(connection, "host-x", None, "operator", bring_back=False)
        await nodes.accept(connection, "host-x", None, "ann")
        await nodes.connected(connection, "host-x", has)
        node_ = await nodes.get(connection, "host-x")
    assert not node_.spec.cordoned and node_.spec.capacity == Capacity(1000, has.memory_mib)
    assert node_.status.inventory == has


async def test_a_host_that_takes_a_nodes_place_is_accepted_anew(database: Database) -> None:
    has = node("host-x").status.inventory
    assert has is not None
    async with database.transaction() as connection:
        await stored.join(connection, "host-x", "key", accepted=True)
        await stored.join(connection, "host-x", "another key", accepted=False)
        spec = (await nodes.get(connection, "host-x")).spec
    assert spec.cordoned and not spec.accepted


async def test_a_node_that_reports_more_than_was_accepted_gains_nothing(database: Database) -> None:
    honest = node("host-x", cpus=4, memory_mib=8192).status.inventory
    assert honest is not None
    liar = msgspec.structs.replace(honest, cpus=1000, memory_mib=4_000_000)
    async with database.transaction() as connection:
        await stored.join(connection, "host-x", "key", accepted=True)
        await nodes.connected(connection, "host-x", honest)
        await nodes.connected(connection, "host-x", liar)
        lying = await nodes.get(connection, "host-x")
        assert lying.status.inventory == honest and lying.status.reported == Capacity(1000, 4_000_000)
    async with database.transaction() as connection:
        await nodes.connected(connection, "host-x", liar)
    async with database.transaction() as connection:
        told = await connection.fetchval("SELECT count(*) FROM events WHERE reason = 'MoreThanAccepted'")
        assert told == 1
        await nodes.accept(connection, "host-x", None, "ann")  # it has grown
        await nodes.connected(connection, "host-x", liar)
        grown = (await nodes.get(connection, "host-x")).status
    assert grown.inventory == liar and grown.reported is None
    shrunk = counted(msgspec.structs.replace(honest, cpus=2), NodeSpec(capacity=Capacity(4, 8192)))
    assert shrunk.cpus == 2


@pytest.mark.parametrize("claim", [{"cpus": 0}, {"cpus": 10**6}, {"memory_mib": -1}, {"memory_mib": 2**40}])
def test_an_implausible_report_is_none(claim: dict[str, int]) -> None:
    has = msgspec.to_builtins(node("host-x").status.inventory)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(has | claim, type(node("host-x").status.inventory))
