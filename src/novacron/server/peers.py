"""Which nodes each node watches, and which nodes vote when the control plane is silent."""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Callable, Mapping, Sequence

import asyncpg

from novacron.model import limits
from novacron.model.errors import NovaError, Unavailable
from novacron.server.session import NodeSession
from novacron.store import identities, leases
from novacron.store.database import LOST, Database
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

PAUSE_S = 1.0
"""Between two announcements, at least."""
SEND_S_MAX = 5.0
"""A node that takes no message for so long is disconnected."""


def watched_by(ring: Sequence[tuple[str, str]], node: str) -> list[tuple[str, str]]:
    """Return the nodes that ``node`` watches: the next ones by name, the first following the last."""
    at = bisect.bisect_left(ring, (node, ""))
    following = [
        peer for peer in (*ring[at : at + limits.WATCHED_BY + 1], *ring[: limits.WATCHED_BY]) if peer[0] != node
    ]
    return list(dict.fromkeys(following))[: limits.WATCHED_BY]


class PeerAnnouncer:
    """Tells the connected nodes, ``sessions``, of each other when that changes; ``run`` must run."""

    def __init__(
        self, database: Database, sessions: Mapping[str, NodeSession], authorities: Callable[[], bytes]
    ) -> None:
        """``authorities``: the certificates of the CAs that nodes are to trust (PEM)."""
        self._authorities = authorities
        self._database = database
        self._sessions = sessions
        self.changed = asyncio.Event()

    async def run(self) -> None:
        """Announce changes until cancelled."""
        while True:
            await self.changed.wait()
            self.changed.clear()
            try:
                async with self._database.connection() as connection:
                    every = await leases.neighbours(connection)
                    revoked = wire.Revoked(tuple(await identities.strange_keys(connection)))
            except (NovaError, asyncpg.PostgresError, *LOST) as error:
                log.warning("peers can't be sent to nodes", error=str(error))
                self.changed.set()
            else:
                await self._announce(every, revoked)
            await asyncio.sleep(PAUSE_S)

    async def _announce(self, every: list[tuple[str, str]], revoked: wire.Revoked) -> None:
        ring = sorted(every)
        voters = tuple(wire.Peer(*peer) for peer in leases.voters_of(every))
        tellings = []
        for session in self._sessions.values():
            watched = tuple(wire.Peer(*peer) for peer in watched_by(ring, session.node))
            accepted, _ = session.accepted
            peers = wire.Peers(voters, watched) if accepted else wire.Peers((), ())
            tellings.append(self._tell(session, peers, revoked))
        await asyncio.gather(*tellings)

    async def _tell(self, session: NodeSession, peers: wire.Peers, revoked: wire.Revoked) -> None:
        """Send one node what it does not have already; a node that does not read delays no other."""
        authorities = wire.Authorities(self._authorities())
        statements = (authorities, session.authorities), (revoked, session.revoked), (peers, session.peers)
        messages = [message for message, sent in statements if message != sent]
        session.peers, session.revoked, session.authorities = peers, revoked, authorities
        try:
            async with asyncio.timeout(SEND_S_MAX):
                for message in messages:
                    await session.send(message)
        except Unavailable:
            pass  # it receives them when it reconnects
        except TimeoutError:
            log.warning("a node takes no messages: its link is closed", node=session.node)
            session.abort()
