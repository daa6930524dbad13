"""Traffic of networks between nodes that has to be encrypted: a setting of the fleet, and what it closes."""

from __future__ import annotations

import base64

import msgspec
import pytest

from novacron.control import gateways
from novacron.control.objects import Objects
from novacron.model.errors import Conflict
from novacron.model.network import WIREGUARD_BYTES, Encryption, NetworkEncryption, NetworkSpec
from novacron.model.node import Inventory
from novacron.store import network_encryption, network_members, networks, nodes
from novacron.store.database import Connection, Database
from tests.support.fleet import node
from tests.support.stored_fleet import add_node, add_vm

ALWAYS, AS_CREATED = NetworkEncryption(True), NetworkEncryption(False)


def key_of(name: str) -> str:
    return base64.b64encode(name.encode().ljust(32)).decode()


def inventory(name: str, key: str) -> Inventory:
    has = node(name).status.inventory
    assert has is not None
    return msgspec.structs.replace(has, networks=True, wireguard=key, dwcp_endpoint=f"{name}:7445")


async def add_member(connection: Connection, name: str, key: str) -> None:
    """Add a node with a VM in the network ``lan``."""
    await add_node(connection, name)
    await nodes.connected(connection, name, inventory(name, key))
    vm = await add_vm(connection, f"vm-{name}", name)
    await connection.execute("INSERT INTO nics (vm, number, network, mac) VALUES ($1, 0, 'lan', $1)", vm)
    await connection.execute(
        "UPDATE vms SET spec = spec || jsonb_build_object('nics', jsonb_build_array('{\"network\": \"lan\"}'::jsonb))"
    )


async def peers(connection: Connection, name: str) -> dict[str, str]:
    """Return the keys of those with which a node exchanges frames of its network, by their hosts."""
    [network] = await network_members.on_node(connection, name)
    return {peer.host: peer.key for peer in network.peers}


async def test_all_traffic_between_nodes_is_encrypted_if_the_fleet_requires_it(database: Database) -> None:
    async with database.transaction() as connection:
        before = await networks.create(
            connection, "default", "lan", NetworkSpec(encryption=Encryption.NEVER), None, "ann"
        )
        for name in ("a", "b"):
            await add_member(connection, name, key_of(name))
        assert await peers(connection, "a") == {"b": ""}
        await add_node(connection, "without")
        await network_encryption.configure(connection, ALWAYS, "ann")
        assert await peers(connection, "a") == {"b": key_of("b")} and await peers(connection, "b") == {"a": key_of("a")}
        assert await network_members.on_node(connection, "without") == (), "no keys for who has no VM of the network"
        assert (await networks.get(connection, "lan")).encryption is Encryption.ALWAYS
        later = await networks.create(connection, "default", "later", NetworkSpec(), None, "ann")
        assert later.encryption_required and before.mtu - later.mtu == WIREGUARD_BYTES
        await network_encryption.configure(connection, AS_CREATED, "ann")
        assert await peers(connection, "a") == {"b": ""}
        assert await network_encryption.get(connection) == AS_CREATED


async def test_what_must_be_encrypted_is_never_sent_in_clear(database: Database) -> None:
    """A node that can encrypt no more loses the others, and they lose it."""
    async with database.transaction() as connection:
        await networks.create(connection, "default", "lan", NetworkSpec(encryption=Encryption.ALWAYS), None, "ann")
        for name in ("a", "b", "c"):
            await add_member(connection, name, key_of(name))
        await nodes.connected(connection, "c", inventory("c", ""))
        assert await peers(connection, "a") == {"b": key_of("b")}
        assert await peers(connection, "c") == {}
        await connection.execute("UPDATE networks SET gateway = 'c'")
    await gateways.step(database, Objects("gateways"))
    async with database.transaction() as connection:
        assert (await networks.get(connection, "lan")).gateway == "a", "the gateway is a node that can"


async def test_encryption_is_not_required_while_it_would_cut_a_node_off(database: Database) -> None:
    async with database.transaction() as connection:
        await networks.create(connection, "default", "lan", NetworkSpec(), None, "ann")
        await add_member(connection, "a", key_of("a"))
        await add_member(connection, "b", "")
        with pytest.raises(Conflict, match="node b can't encrypt"):
            await network_encryption.configure(connection, ALWAYS, "ann")
        await nodes.connected(connection, "b", inventory("b", key_of("b")))
        await network_encryption.configure(connection, ALWAYS, "ann")


async def test_a_key_that_another_node_has_does_not_count(database: Database) -> None:
    """Else its peers would take the one for the other, and one node could cut another off."""
    async with database.transaction() as connection:
        await networks.create(connection, "default", "lan", NetworkSpec(encryption=Encryption.ALWAYS), None, "ann")
        for name in ("a", "b", "evil"):
            await add_member(connection, name, key_of(name))
        await nodes.connected(connection, "evil", inventory("evil", key_of("b")))
        assert await peers(connection, "a") == {"b": key_of("b")}
        has = (await nodes.get(connection, "evil")).status.inventory
        assert has is not None and "that of node b" in has.missing[-1]
        await nodes.connected(connection, "b", inventory("b", key_of("b")))  # again: it keeps its own
        assert await peers(connection, "a") == {"b": key_of("b")}
