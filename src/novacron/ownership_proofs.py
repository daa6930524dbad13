"""Proofs of what a server has said: that a VM reached an epoch, and how far a database had come.

A node keeps them and shows them to a server whose database knows less. The key comes from the CA's key, which is in
files of each server: it outlives the database that was put back. See docs/adr/0074-proofs-of-ownership.md.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from novacron import pki
from novacron.model.database_mark import DatabaseMark
from novacron.model.ownership import Claim, Order, OrderKind, OwnershipRecord
from novacron.model.token import same_secret

PURPOSE = "proofs of what nodes were told"
MAC_BYTES = 16
WEEK_S = 7 * 24 * 3600
WEEKS_MAX = 8
"""How long a proof counts: for less time than the database remembers that a VM was deleted."""


class OwnershipProofs:
    """Makes and checks proofs. All accepted keys check, the first one makes."""

    def __init__(self, roots: Callable[[], Sequence[bytes]], clock: Callable[[], float] = time.time) -> None:
        """``roots`` returns what the keys are derived from, while the CA is rotated of both CAs."""
        self._roots, self._clock = roots, clock
        self._derived: tuple[Sequence[bytes], list[bytes]] = ((), [])

    def of_order(self, vm: str, order: Order) -> str:
        """Return the proof that a server said this."""
        week = self._week()
        return f"{week:x}.{_mac(self._keys()[0], *_ordered(vm, order.kind, order.epoch, week))}"

    def prove(self, vm: str, held: OwnershipRecord, proof: str) -> bool:
        """Say whether a server said, not too long ago, what a node claims of a VM. That it owns the VM was said in
        those words; whatever else it claims follows from any order of that epoch."""
        written, _, mac = proof.partition(".")
        try:
            week = int(written, 16)
        except ValueError:
            return False
        if not self._week() - WEEKS_MAX <= week <= self._week() + 1:
            return False
        kinds = (OrderKind.OWN,) if held.claim is Claim.OWNER else tuple(OrderKind)
        return self._is_one(mac, [_ordered(vm, kind, held.epoch, week) for kind in kinds])

    def seal(self, mark: DatabaseMark | None) -> DatabaseMark | None:
        """Return a mark with its proof."""
        if mark is None:
            return None
        return msgspec.structs.replace(mark, proof=_mac(self._keys()[0], *_counted(mark)))

    def vouch_for(self, mark: DatabaseMark) -> bool:
        """Say whether a server has counted so far."""
        return self._is_one(mark.proof, [_counted(mark)])

    def _is_one(self, mac: str, said: Iterable[tuple[str, ...]]) -> bool:
        return any(same_secret(_mac(key, *what), mac) for what in said for key in self._keys())

    def _keys(self) -> list[bytes]:
        roots = self._roots()
        if self._derived[0] is not roots:
            self._derived = roots, [pki.expand(root, PURPOSE) for root in roots]
        return self._derived[1]

    def _week(self) -> int:
        return int(self._clock() // WEEK_S)


def _ordered(vm: str, kind: OrderKind, epoch: int, week: int) -> tuple[str, ...]:
    return ("order", vm, kind, str(epoch), str(week))


def _counted(mark: DatabaseMark) -> tuple[str, ...]:
    return ("mark", mark.server, str(mark.number))


def _mac(key: bytes, *said: str) -> str:
    return hmac.new(key, msgspec.json.encode(said), hashlib.sha256).digest()[:MAC_BYTES].hex()
