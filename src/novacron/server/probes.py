"""Measurements of paths between nodes, while they are under way."""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime

from novacron.model.errors import InvalidInput, Unavailable
from novacron.model.link_sharing import lowest
from novacron.model.probe import MoveForeseen, PathMeasured
from novacron.server.questions import Questions
from novacron.store import links, nodes
from novacron.store.database import Database
from novacron.wire import messages as wire

PROBES_MAX = 16
PROBE_S_MAX = 30.0

Found = tuple[PathMeasured, MoveForeseen | None]
"""What was measured, and what a VM's move over it would be like, where that was asked for and its agent can tell."""


class Probes:
    """Lets one node measure the path to another."""

    def __init__(self, database: Database, questions: Questions) -> None:
        self._database = database
        self._questions = questions
        self._running = 0

    async def measure(self, source: str, target: str, seconds: float, vm: str | None = None) -> Found:
        """Let one node measure the path to another. Raises Unavailable, NotFound, InvalidInput."""
        if source == target:
            raise InvalidInput(f"source and target are both {source}", field="target", hint="choose another node")
        async with self._database.connection() as connection:
            ends = [await nodes.get(connection, name, field=f) for f, name in (("source", source), ("target", target))]
            rate = None if vm is None else lowest(ends[0], ends[1], await links.all(connection), datetime.now(UTC))
            endpoint = await nodes.dwcp_endpoint(connection, target)
        if endpoint is None:
            raise Unavailable(f"node {target} is not connected", hint="see: novacron node list")
        if self._running >= PROBES_MAX:
            raise Unavailable(f"{self._running} probes are in progress", hint="try again in a moment")
        id = f"probe-{secrets.token_hex(8)}"
        self._running += 1
        try:
            async with asyncio.timeout(PROBE_S_MAX + seconds):
                await self._request(target, wire.ProbeExpected(id, source, seconds))
                over = await self._request(source, wire.ProbeWanted(id, target, endpoint, seconds, vm, rate))
        except TimeoutError:
            raise Unavailable(f"nodes {source} and {target} do not answer", hint="see their agents' logs") from None
        finally:
            self._running -= 1
        if not isinstance(over, wire.Probed) or over.found is None:
            raise Unavailable(f"node {source} returned no measurements", hint="see its agent's log")
        return over.found, over.foreseen

    async def _request(self, node: str, request: wire.Request) -> wire.Reply:
        """Return the reply of a node that did its part. Raises Unavailable."""
        reply = await self._questions.request(node, request)
        if reply.error:
            raise Unavailable(f"node {node}: {reply.error}", hint="see its agent's log")
        return reply
