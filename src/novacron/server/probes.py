"""Measurements of paths between nodes, while they are under way."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from datetime import UTC, datetime

from novacron.model.errors import InvalidInput, Unavailable
from novacron.model.link_sharing import lowest
from novacron.model.probe import MoveForeseen, PathMeasured
from novacron.server.session import Session
from novacron.store import links, nodes
from novacron.store.database import Database
from novacron.wire import messages as wire

PROBES_MAX = 16
PROBE_S_MAX = 30.0

Found = tuple[PathMeasured, MoveForeseen | None]
"""What was measured, and what a VM's move over it would be like, where that was asked for and its agent can tell."""


class _Probe:
    """A probe that somebody waits for."""

    def __init__(self, nodes: tuple[str, str]) -> None:
        loop = asyncio.get_running_loop()
        self.nodes = nodes
        self.ready: asyncio.Future[None] = loop.create_future()
        self.found: asyncio.Future[Found] = loop.create_future()


class Probes:
    """Lets nodes measure, and gives what they found to who waits for it."""

    def __init__(self, database: Database, find: Callable[[str], Session]) -> None:
        """``find``: returns the session of a node by name. Raises Unavailable."""
        self._database = database
        self._find = find
        self._probes: dict[str, _Probe] = {}

    async def measure(self, source: str, target: str, seconds: float, vm: str | None = None) -> Found:
        """Let one node measure the path to another. Raises Unavailable, NotFound, InvalidInput."""
        if source == target:
            raise InvalidInput(f"both ends are {source}", field="target", hint="name another node")
        async with self._database.connection() as connection:
            ends = [await nodes.get(connection, name, field=f) for f, name in (("source", source), ("target", target))]
            rate = None if vm is None else lowest(ends[0], ends[1], await links.all(connection), datetime.now(UTC))
            endpoint = await nodes.dwcp_endpoint(connection, target)
        sender, receiver = self._find(source), self._find(target)
        if endpoint is None:
            raise Unavailable(f"node {target} is not connected", hint="see: novacron node list")
        if len(self._probes) >= PROBES_MAX:
            raise Unavailable(f"{len(self._probes)} probes are under way", hint="try again in a moment")
        id = f"probe-{secrets.token_hex(8)}"
        asked = self._probes[id] = _Probe((source, target))
        try:
            async with asyncio.timeout(PROBE_S_MAX + seconds):
                await receiver.send(wire.ProbeExpected(id, source, seconds))
                await asked.ready
                await sender.send(wire.ProbeWanted(id, target, endpoint, seconds, vm, rate))
                return await asked.found
        except TimeoutError:
            raise Unavailable(f"nodes {source} and {target} do not answer", hint="see their agents' logs") from None
        finally:
            del self._probes[id]

    def is_ready(self, node: str, id: str) -> None:
        """The target waits for the source, if somebody still waits for both."""
        found = self._probes.get(id)
        if found is not None and node == found.nodes[1] and not found.ready.done():
            found.ready.set_result(None)

    def is_over(self, node: str, said: wire.Probed) -> None:
        """One of the two has found something, or why it can't."""
        found = self._probes.get(said.probe)
        if found is None or node not in found.nodes or found.found.done():
            return
        if said.found is not None:
            found.found.set_result((said.found, said.foreseen))
            return
        why = Unavailable(f"node {node}: {said.error}", hint="see its agent's log")
        (found.found if found.ready.done() else found.ready).set_exception(why)
