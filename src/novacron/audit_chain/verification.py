"""Verifies the chain, entry by entry, and says which records were changed, removed, reordered or inserted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from novacron.audit_chain import entries
from novacron.audit_chain.entries import ChainEntry
from novacron.audit_chain.heads import PublicKey, SignedHead, is_signed

FAULTS_MAX = 100
"""Faults that are described; more are only counted."""
MISPLACED_MAX = 100
"""Entries that are compared with one another to find out whether they were exchanged."""
ERASURE = "erase_user"
"""The action that announces an erasure: its record's name is the pseudonym, its detail says of how many records."""
ANNOUNCED = re.compile(r"in (\d+) records")


class FaultKind(StrEnum):
    CHANGED = "changed"
    REMOVED = "removed"
    REORDERED = "reordered"
    INSERTED = "inserted"
    ERASED = "erased"
    """Personal fields were replaced, and no record says that somebody was erased."""
    BROKEN = "broken"
    """An entry does not repeat the hash of the one before."""
    HEAD = "head"
    """The chain is not the one that a head was signed for, or the head is not signed by a known key."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not as it was recorded. ``seq``: the place in the chain; ``record``: the record's id."""

    kind: FaultKind
    message: str
    seq: int | None = None
    record: int | None = None


class ChainState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a server's chain."""

    chain: str
    start_seq: int
    """The last entry that retention has cut off; 0: none."""
    start_hash: str
    seq: int
    hash: str
    keys: list[PublicKey]
    unchained: int
    """Records that are not chained yet, of the last moments."""
    unchained_oldest_s: float
    """How old the oldest of them is."""
    strays: list[int]
    """Unchained records: somebody has inserted them."""


class VerificationReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a verification has found."""

    first: int
    last: int
    """The entries that were looked at."""
    heads: int
    """Heads in that range whose signature and hash are right."""
    vouched: int
    """The last entry for which such a head vouches; 0: none does."""
    erased: int
    """Records in which a person's data was replaced."""
    faults: list[Fault]
    more_faults: int

    @property
    def good(self) -> bool:
        return not self.faults


class Verifier:
    """Verifies one range of a chain. ``add`` gets its entries in order, then ``finish`` reports.

    ``start``: number and hash of the entry before the range; hash None: not known. ``trusted``: heads that the caller
    has kept, apart from the server. Keys of theirs count, others do not.
    """

    def __init__(
        self, state: ChainState, start: tuple[int, str | None], heads: Sequence[SignedHead],
        trusted: Sequence[SignedHead] = (), trusted_keys: Sequence[PublicKey] | None = None,
    ) -> None:  # fmt: skip
        self._state = state
        self._first, self._last = start[0] + 1, start[0]
        self._hash = start[1]
        self._faults: list[Fault] = []
        self._more = 0
        self._misplaced: list[ChainEntry] = []
        self._erased: Counter[str] = Counter()
        self._erased_entries = 0
        self._announced: dict[str, int] = {}
        self._keys = {key.id: key.public_key for key in (state.keys if trusted_keys is None else trusted_keys)}
        self._good_heads, self._vouched = 0, 0
        self._trusted = sorted(trusted, key=lambda head: head.seq)
        self._heads: dict[int, list[SignedHead]] = {}
        for head in [*heads, *self._trusted]:
            if head not in self._heads.setdefault(head.seq, []):
                self._heads[head.seq].append(head)
        self._judge_start(start)

    def _judge_start(self, start: tuple[int, str | None]) -> None:
        seq, hash = start
        if seq == 0:
            if hash != entries.genesis(self._state.chain):
                self._fault(FaultKind.BROKEN, "the chain does not begin as its id says", seq=1)
            return
        if hash is not None:
            self._judge_heads(seq, hash)
            if seq not in self._heads:
                self._fault(FaultKind.HEAD, f"no signed head vouches for the start of the log, after entry {seq}",
                            seq=seq)  # fmt: skip

    def _fault(self, kind: FaultKind, message: str, *, seq: int | None = None, record: int | None = None) -> None:
        if len(self._faults) >= FAULTS_MAX:
            self._more += 1
        else:
            self._faults.append(Fault(kind=kind, message=message, seq=seq, record=record))

    def add(self, entry: ChainEntry) -> None:
        """Take the next entry."""
        if entry.seq <= self._last:
            self._fault(FaultKind.REORDERED, f"entry {entry.seq} comes after entry {self._last}", seq=entry.seq,
                        record=entry.record_id)  # fmt: skip
            return
        if entry.seq > self._last + 1:
            missing = f"entry {self._last + 1} is" if entry.seq == self._last + 2 else (
                f"entries {self._last + 1} to {entry.seq - 1} are")  # fmt: skip
            self._fault(FaultKind.REMOVED, f"{missing} missing", seq=self._last + 1)
        elif self._hash is not None and entry.previous != self._hash:
            self._fault(
                FaultKind.BROKEN, f"entry {entry.seq} does not follow entry {entry.seq - 1}: records were removed,"
                " inserted or reordered here", seq=entry.seq, record=entry.record_id,
            )  # fmt: skip
        self._judge_record(entry)
        self._last, self._hash = entry.seq, entry.hash
        self._judge_heads(entry.seq, entry.hash)

    def _judge_record(self, entry: ChainEntry) -> None:
        if entry.record is None:
            self._fault(FaultKind.REMOVED, f"record {entry.record_id} was removed", seq=entry.seq,
                        record=entry.record_id)  # fmt: skip
            return
        if not entries.matches(entry):
            if len(self._misplaced) < MISPLACED_MAX:
                self._misplaced.append(entry)
            else:
                self._fault(FaultKind.CHANGED, f"record {entry.record.id} was changed", seq=entry.seq,
                            record=entry.record.id)  # fmt: skip
            return
        if entry.erased is not None:
            self._judge_erased(entry, entry.erased)
        counted = ANNOUNCED.search(entry.record.detail) if entry.record.action == ERASURE else None
        if counted is not None and entry.record.name is not None:
            self._announced[entry.record.name] = int(counted[1])

    def _judge_erased(self, entry: ChainEntry, erased: entries.Erased) -> None:
        self._erased_entries += 1
        self._erased.update(set(erased.pseudonyms))
        for field in erased.commitments:
            if getattr(entry.record, field) not in erased.pseudonyms:
                self._fault(FaultKind.CHANGED, f"record {entry.record_id}: its {field} was changed", seq=entry.seq,
                            record=entry.record_id)  # fmt: skip

    def _judge_heads(self, seq: int, hash: str) -> None:
        for head in self._heads.get(seq, ()):
            if not self._is_known(head):
                continue
            if head.hash != hash or head.chain != self._state.chain:
                since = f"after entry {self._vouched}" if self._vouched else "somewhere before"
                self._fault(FaultKind.HEAD, f"the chain at entry {seq} is not the one that was signed on"
                            f" {head.at:%Y-%m-%d %H:%M:%S}: it was rewritten {since}", seq=seq)  # fmt: skip
            else:
                self._good_heads, self._vouched = self._good_heads + 1, seq

    def _is_known(self, head: SignedHead) -> bool:
        public_key = self._keys.get(head.key)
        if public_key is not None and is_signed(head, public_key):
            return True
        why = "is not signed by the key that it names" if public_key is not None else f"is signed by unknown {head.key}"
        self._fault(FaultKind.HEAD, f"the head at entry {head.seq} {why}", seq=head.seq)
        return False

    def finish(self, *, to_the_end: bool) -> VerificationReport:
        """Report. ``to_the_end``: the range is everything that there is."""
        self._judge_misplaced()
        if to_the_end:
            self._judge_end()
            self._judge_erasures()
        return VerificationReport(
            first=self._first, last=self._last, heads=self._good_heads, vouched=self._vouched,
            erased=self._erased_entries, faults=self._faults, more_faults=self._more,
        )  # fmt: skip

    def _judge_misplaced(self) -> None:
        for entry in self._misplaced:
            record = entry.record
            assert record is not None
            place = next((other.seq for other in self._misplaced if other is not entry and (
                entries.fits(other, record)
                or entries.matches(msgspec.structs.replace(entry, seq=other.seq, previous=other.previous))
                or entries.matches(msgspec.structs.replace(entry, seq=other.seq))
            )), None)  # fmt: skip
            if place is None:
                self._fault(FaultKind.CHANGED, f"record {record.id} was changed", seq=entry.seq, record=record.id)
            else:
                self._fault(FaultKind.REORDERED, f"record {record.id} is at place {entry.seq}, and was at {place}",
                            seq=entry.seq, record=record.id)  # fmt: skip

    def _judge_end(self) -> None:
        for stray in self._state.strays:
            self._fault(FaultKind.INSERTED, f"record {stray} was inserted: it is in no place of the chain",
                        record=stray)  # fmt: skip
        newest = max([self._state.seq, *self._heads])
        if newest > self._last:
            self._fault(FaultKind.REMOVED, f"entries after {self._last} are missing: there was an entry {newest}",
                        seq=self._last + 1)  # fmt: skip
        elif self._hash is not None and self._state.hash != self._hash:
            self._fault(FaultKind.BROKEN, f"entry {self._last} is not the last one of the chain", seq=self._last)

    def _judge_erasures(self) -> None:
        for pseudonym, count in self._erased.items():
            announced = self._announced.get(pseudonym)
            if announced is None or count > announced:
                recorded = "no record says so" if announced is None else f"the record of it says {announced}"
                self._fault(FaultKind.ERASED, f"{pseudonym} stands in {count} records for somebody who was erased:"
                            f" {recorded}")  # fmt: skip


def verify(verifier: Verifier, chain: Iterable[ChainEntry], *, to_the_end: bool) -> VerificationReport:
    """Verify a range of a chain."""
    for entry in chain:
        verifier.add(entry)
    return verifier.finish(to_the_end=to_the_end)
