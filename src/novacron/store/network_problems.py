"""What keeps networks, forwards and floating addresses from working, as nodes and the server find."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import asyncpg

from novacron.model.network import NetworkProblem
from novacron.model.waiting import WaitCode
from novacron.store import events
from novacron.store.database import Connection
from novacron.store.hindered import ERROR_LENGTH_MAX, hindrance

SERVER = ""
"""In place of a node's name: what the server itself has found."""
NODES_NAMED_MAX, PROBLEMS_PER_NETWORK_MAX = 3, 20

HERE = """
    SELECT name, gateway, problems, reason_code FROM networks WHERE problems ? $1 OR gateway = $1
    OR name IN (SELECT network FROM nics JOIN vms ON vms.id = nics.vm WHERE vms.node = $1)
    OR name IN (SELECT network FROM nics JOIN migrations ON migrations.vm = nics.vm
                WHERE migrations.target = $1 AND migrations.finished_at IS NULL)
    ORDER BY name FOR UPDATE OF networks
"""
"""Networks that a node has, or of which it has said something."""


def summary(problems: dict[str, list[list[str]]]) -> tuple[str, str]:
    """Return the code and the words of a network of which nodes have these problems, each a code and words. Pure."""
    said = [(node, code, words) for node, of_node in sorted(problems.items()) for code, words in of_node]
    if not said:
        return "", ""
    texts = [words if node == SERVER else f"node {node}: {words}" for node, _, words in said[:NODES_NAMED_MAX]]
    more = len(said) - len(texts)
    return said[0][1], ("; ".join(texts) + (f"; and {more} more" if more else ""))[:ERROR_LENGTH_MAX]


async def record(connection: Connection, node: str, problems: Sequence[NetworkProblem]) -> None:
    """Store all that a node says of the networks that it has; what it says of others is ignored."""
    of_networks, of_ways = defaultdict[str, list[list[str]]](list), defaultdict[str, list[NetworkProblem]](list)
    for problem in problems:
        if problem.address is None and problem.port is None:
            words = problem.message[:ERROR_LENGTH_MAX]
            of_networks[problem.network].append([hindrance(words, problem.code), words])
        else:
            of_ways[problem.network].append(problem)
    for row in await connection.fetch(HERE, node):
        name = row["name"]
        await _store(connection, row, node, of_networks.get(name, [])[:PROBLEMS_PER_NETWORK_MAX])
        if row["gateway"] == node:
            broken = of_networks.get(name)
            await _ways_in(connection, name, of_ways.get(name, []), broken[0] if broken else None)


async def _store(connection: Connection, row: asyncpg.Record, node: str, now: list[list[str]]) -> None:
    """Store the problems that a node, or the server, has with a network."""
    problems = {other: had for other, had in row["problems"].items() if other != node}
    if now:
        problems[node] = now
    if problems == row["problems"]:
        return
    code, words = summary(problems)
    await connection.execute(
        "UPDATE networks SET problems = $2, reason_code = $3, reason = $4 WHERE name = $1",
        row["name"], problems, code, words,
    )  # fmt: skip
    if code and code != row["reason_code"]:
        await events.record(connection, events.NewEvent("network", row["name"], row["name"], code, words))


async def _ways_in(
    connection: Connection, network: str, problems: Sequence[NetworkProblem], broken: list[str] | None
) -> None:
    """Store what the gateway says of its floating addresses and forwarded ports."""
    addresses = {problem.address: problem for problem in problems if problem.address is not None and not problem.port}
    exact = {(problem.address, str(problem.protocol), problem.port): problem for problem in problems if problem.port}
    floating = await connection.fetch("SELECT * FROM floating_addresses WHERE network = $1 FOR UPDATE", network)
    for row in floating:
        now = _words(addresses.get(row["address"]), broken)
        if await change(connection, "floating_addresses", "address", row, now):
            event = events.NewEvent("floating-address", row["address"], row["address"], *now, project=row["project"])
            await events.record(connection, event)
    for row in await connection.fetch("SELECT * FROM forwards WHERE network = $1 FOR UPDATE", network):
        if row["reason_code"] == WaitCode.PORT_NOT_ALLOWED:  # the server says that
            continue
        way = exact.get((row["address"], row["protocol"], row["port"])) or addresses.get(row["address"])
        now = _words(way, broken)
        if await change(connection, "forwards", "id", row, now):
            await events.record(connection, events.NewEvent("vm", row["vm"], row["vm_name"], *now))


def _words(problem: NetworkProblem | None, broken: list[str] | None) -> tuple[str, str]:
    """Return the code and the words of a way in: its own, or its network's."""
    if broken is not None:
        return broken[0], broken[1][:ERROR_LENGTH_MAX]
    if problem is None:
        return "", ""
    return hindrance(problem.message, problem.code), problem.message[:ERROR_LENGTH_MAX]


async def change(connection: Connection, table: str, key: str, row: asyncpg.Record, now: tuple[str, str]) -> bool:
    """Store what is said now; say whether it is a hindrance that was not there before."""
    if (row["reason_code"], row["reason"]) == now:
        return False
    await connection.execute(f"UPDATE {table} SET reason_code = $2, reason = $3 WHERE {key} = $1", row[key], *now)
    return now[0] not in ("", row["reason_code"])


async def set_gateway_problem(connection: Connection, network: str, why: str) -> None:
    """Store why a network has no gateway, nothing if it has one."""
    row = await connection.fetchrow("SELECT * FROM networks WHERE name = $1 FOR UPDATE", network)
    if row is not None:
        await _store(connection, row, SERVER, [[WaitCode.NO_GATEWAY, why]] if why else [])


async def node_removed(connection: Connection, node: str) -> None:
    """A node is gone, with the problems that it had."""
    for row in await connection.fetch("SELECT * FROM networks WHERE problems ? $1 ORDER BY name FOR UPDATE", node):
        await _store(connection, row, node, [])
