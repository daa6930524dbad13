"""Which of the nodes that this one watches answer it: steady words about answers that may come and go. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from novacron.model.condition import PEERS_MAX, PeersSeen, UnreachablePeer

UNREACHABLE_AFTER_S = 30.0
"""A peer that has not answered for so long is unreachable."""
REACHABLE_AFTER_S = 6.0
"""One that has answered for so long without a failure is reachable again."""
GAP_S_MAX = 15.0
"""After a pause that long, as when the server is silent and voters are asked instead, what was counted does not count.
"""
ERROR_LENGTH_MAX = 200


class _Peer(msgspec.Struct):
    unreachable: bool = False
    error: str = ""
    """How the attempt ended that made it unreachable."""
    contrary_since: float | None = None
    """Since when it does otherwise than ``unreachable`` says."""


class PeerReach:
    """``look`` takes what peers answered; ``seen`` says which are unreachable."""

    def __init__(self) -> None:
        self._peers: dict[str, _Peer] = {}
        self._looked_at = 0.0

    def look(self, answers: Mapping[str, str | None], now: float) -> None:
        """Take one round: for each peer that is watched, how asking it failed, None where it answered."""
        fresh = now - self._looked_at > GAP_S_MAX
        self._looked_at = now
        self._peers = {name: self._peers.get(name) or _Peer() for name in answers}
        for name, error in answers.items():
            peer, unreachable_now = self._peers[name], error is not None
            if unreachable_now is peer.unreachable:
                peer.contrary_since = None
                continue
            if peer.contrary_since is None or fresh:
                peer.contrary_since = now
            after_s = UNREACHABLE_AFTER_S if unreachable_now else REACHABLE_AFTER_S
            if now - peer.contrary_since >= after_s:
                peer.unreachable, peer.error, peer.contrary_since = unreachable_now, error or "", None

    def seen(self) -> PeersSeen:
        """Return what the server is to be told."""
        gone = [UnreachablePeer(name, peer.error[:ERROR_LENGTH_MAX]) for name, peer in self._peers.items()
                if peer.unreachable]  # fmt: skip
        return PeersSeen(len(self._peers) - len(gone), tuple(gone[:PEERS_MAX]))
