"""What this node and others say of each other: a second sign of life beside the link to the server."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path

import msgspec

from novacron import pki
from novacron.agent.host.clock import Clock
from novacron.agent.host.endpoint import parse_endpoint
from novacron.agent.host.lease import NodeLease
from novacron.agent.host.peer_reach import PeerReach
from novacron.dwcp.connection import ConnectionPool
from novacron.dwcp.frames import Frame, FrameType, ProtocolError
from novacron.model import limits
from novacron.model.condition import PeersSeen
from novacron.model.errors import MALFORMED
from novacron.model.lease import ANSWER_S_MAX, POLL_S, VOTER_GROUPS_MAX, Vitals
from novacron.supervise import Rarely
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

FAILURES = (OSError, TimeoutError, ssl.SSLError, ProtocolError, asyncio.IncompleteReadError, *MALFORMED)


class KeptPeers(msgspec.Struct, frozen=True):
    """The list of peers, and the groups of voters of which the server knows one: what a new agent goes on with."""

    voters: tuple[wire.Peer, ...]
    watched: tuple[wire.Peer, ...]
    known: tuple[tuple[str, ...], ...] = ()

    def names(self) -> tuple[str, ...]:
        return tuple(peer.name for peer in self.voters)


class PeerWatch:
    """Asks other nodes how they are: always those that this one watches, and the voters when the server is silent."""

    def __init__(
        self, path: Path, name: str, pool: ConnectionPool, lease: NodeLease, clock: Clock, ended: Callable[[], None]
    ) -> None:
        """``ended`` is called when the lease is over."""
        self._path, self._name, self._pool, self._lease, self._ended = path, name, pool, lease, ended
        self._clock = clock
        self._kept = KeptPeers((), ())
        with contextlib.suppress(OSError, *MALFORMED):
            self._kept = kept = msgspec.json.decode(path.read_bytes(), type=KeptPeers)
            lease.rule.voters_next = kept.names()
            lease.rule.voters_sent = kept.known or (kept.names(),)  # earlier agents did not write them down
        self._peers = wire.Peers(self._kept.voters, self._kept.watched)
        self._seen: dict[str, wire.PeerSeen] = {}
        self._reach = PeerReach()
        self._log_now = Rarely()
        self._was_valid = lease.valid()

    def tell(self, peers: wire.Peers) -> None:
        """Take the list of peers from the server."""
        self._peers = peers

    async def _keep(self) -> None:
        """Store the list of peers, and only then let the server know by whose word this node goes on.

        The groups of voters that the server may know of are stored with it: an agent that begins before an
        acknowledgement came goes on without the server only if all of them agree.
        """
        rule, peers = self._lease.rule, self._peers
        voters = tuple(peer.name for peer in peers.voters)
        known = tuple(dict.fromkeys((*rule.voters_known(), voters)))
        kept = KeptPeers(peers.voters, peers.watched, known)
        if kept == self._kept or len(known) > VOTER_GROUPS_MAX:
            return
        try:
            await asyncio.to_thread(self._store, kept)
        except OSError as error:  # the voters of before go on counting
            if self._log_now.due("store"):
                log.warning("the list of peers can't be stored", error=str(error))
            return
        self._kept, rule.voters_next = kept, voters

    def _store(self, kept: KeptPeers) -> None:
        scratch = self._path.with_suffix(".new")
        scratch.write_bytes(msgspec.json.encode(kept))
        scratch.rename(self._path)

    def vitals(self) -> Vitals:
        """Return what this node says when it is asked."""
        return Vitals(silent=self._lease.silent())

    def reach(self) -> PeersSeen:
        """Return which of the nodes that this one watches answer it."""
        return self._reach.seen()

    def heartbeat(self) -> wire.Heartbeat:
        """Return what the server is to be told now."""
        rule, now = self._lease.rule, self._lease.now()
        number = rule.beat(now)
        return wire.Heartbeat(
            number, rule.acknowledged, rule.steady_s(now), rule.voters_next, tuple(self._seen.values()),
            self._clock.time(),
        )  # fmt: skip

    async def run(self) -> None:
        """Look after the others, and after this node's lease, until cancelled."""
        looked_at = 0.0
        while True:
            await self._clock.sleep(POLL_S)
            await self._keep()
            if self._lease.silent():
                await self._vote()
            elif self._lease.now() - looked_at > limits.HEARTBEAT_INTERVAL_S:
                looked_at = self._lease.now()
                await self._look()
            valid = self._lease.valid()
            if self._was_valid and not valid:
                log.warning("this node's lease is over: its highly available VMs end")
                self._ended()
            self._was_valid = valid

    async def _look(self) -> None:
        """Ask the nodes that this one watches."""
        answers = await self._ask_all(self._peers.watched)
        self._seen = {
            name: wire.PeerSeen(name, answer.silent) for name, answer in answers.items() if isinstance(answer, Vitals)
        }
        errors = {name: None if isinstance(answer, Vitals) else answer for name, answer in answers.items()}
        self._reach.look(errors, self._lease.now())

    async def _vote(self) -> None:
        asked_at = self._lease.now()
        answers = await self._ask_all(tuple(peer for peer in self._peers.voters if peer.name != self._name))
        silent = {name for name, answer in answers.items() if isinstance(answer, Vitals) and answer.silent}
        silent.add(self._name)
        allowed = self._lease.silent() and self._lease.may_go_on(silent, asked_at)
        if not allowed and self._lease.valid():
            log.info("the server is silent, and too few others say so", silent=sorted(silent))

    async def _ask_all(self, peers: tuple[wire.Peer, ...]) -> dict[str, Vitals | str]:
        answers = await asyncio.gather(*(self._ask(peer) for peer in peers))
        return {peer.name: answer for peer, answer in zip(peers, answers, strict=True)}

    async def _ask(self, peer: wire.Peer) -> Vitals | str:
        """Ask one node; return its answer, or why there is none soon."""
        try:
            endpoint, host = parse_endpoint(peer.endpoint), pki.node_host(peer.name)
            async with asyncio.timeout(ANSWER_S_MAX):
                connection = await self._pool.take(endpoint, host)
                try:
                    connection.put(Frame(FrameType.VITALS))
                    while (frame := await connection.read()).type is not FrameType.VITALS:
                        pass  # the end of what the connection carried before
                except BaseException:
                    connection.abort()
                    raise
                self._pool.give(endpoint, host, connection)
                return msgspec.msgpack.decode(frame.payload, type=Vitals)
        except TimeoutError:
            return f"no answer within {ANSWER_S_MAX:.0f} s"
        except FAILURES as error:
            return str(error) or type(error).__name__
        except Exception:  # a defect met with one of them must not keep the others from being heard
            log.exception("defect while a node was asked", peer=peer.name)
            return "internal error: see this agent's log"
