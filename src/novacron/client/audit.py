"""Verifies the audit log: as a server has it, or from an export, without a server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import msgspec

from novacron.audit_chain import verification
from novacron.audit_chain.entries import ChainEntry
from novacron.audit_chain.heads import PublicKey, SignedHead
from novacron.audit_chain.verification import ChainState, FaultKind, VerificationReport, Verifier
from novacron.client.api import Client
from novacron.client.errors import ArchiveError

FORMAT = "novacron-audit-1"
LINE_BYTES_MAX = 64 * 1024
END = 2**63
"""As the last entry: all that there are."""
TRIES_MAX = 3
"""How often an online verification begins anew because retention has cut off old records, or somebody was erased,
meanwhile."""
SETTLE_S, SETTLE_POLL_S = 10.0, 0.3
"""How long to wait until the chain has what was recorded, and how often to look."""

T = TypeVar("T")


class EarlierExport(NamedTuple):
    """A file of an earlier export: state and heads, with entries that can be read once, or without any."""

    state: ChainState
    heads: list[SignedHead]
    entries: Iterator[ChainEntry]


class Range(NamedTuple):
    """What to verify: entries by number, or what was recorded from and to a time; None: from the start, to the end."""

    begin: int | datetime | None = None
    end: int | datetime | None = None


def fetch_heads(client: Client) -> list[SignedHead]:
    return [msgspec.convert(item, SignedHead) for item in client.list("audit/heads")]


def fetch_entries(client: Client, after: int, until: int) -> Iterator[ChainEntry]:
    """Yield a server's entries after number ``after``, up to ``until``."""
    for item in client.list("audit/entries", after=str(after)):
        entry = msgspec.convert(item, ChainEntry)
        if entry.seq > until:
            return
        yield entry


def settled(client: Client) -> ChainState:
    """Return the state of a server's chain once that has what was recorded when this was called, or after a while:
    an erasure takes effect at once, and the record that announces it is chained a moment later."""
    began = time.monotonic()
    while True:
        state = msgspec.convert(client.audit_chain(), ChainState)
        waited_s = time.monotonic() - began
        if not state.unchained or state.unchained_oldest_s < waited_s or waited_s > SETTLE_S:
            return state
        time.sleep(SETTLE_POLL_S)


class Exported(NamedTuple):
    """How many entries were exported, and the pseudonyms in them that no record announces: of people who were erased
    meanwhile, unless somebody has edited the log."""

    entries: int
    unannounced: set[str]


def export(client: Client, file: IO[str], *, heads_only: bool = False) -> Exported:
    """Write a server's chain, or its heads alone, to a file, a JSON document a line."""
    state = settled(client)
    _line(file, {"format": FORMAT, "state": msgspec.to_builtins(state)})
    for head in fetch_heads(client):
        _line(file, {"head": msgspec.to_builtins(head)})
    count, pseudonyms, announced = 0, set[str](), set[str | None]()
    for entry in () if heads_only else fetch_entries(client, state.start_seq, state.seq):
        _line(file, {"entry": msgspec.to_builtins(entry)})
        count += 1
        pseudonyms.update(entry.erased.pseudonyms if entry.erased is not None else ())
        if entry.record is not None and entry.record.action == verification.ERASURE:
            announced.add(entry.record.name)
    return Exported(count, pseudonyms - announced)


def _line(file: IO[str], document: dict[str, Any]) -> None:
    file.write(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n")


def read(path: Path) -> EarlierExport:
    """Return what an export holds. Raises ArchiveError."""
    lines = _lines(path)
    first = next(lines, {})
    if first.get("format") != FORMAT:
        raise ArchiveError(f"{path} is no export of an audit log: make one with novacron audit export")
    state, heads, rest = _as(path, first.get("state"), ChainState), list[SignedHead](), dict[str, Any]()
    for line in lines:
        if "head" not in line:
            rest = line
            break
        heads.append(_as(path, line["head"], SignedHead))

    def remaining() -> Iterator[ChainEntry]:
        if rest:
            yield _as(path, rest.get("entry"), ChainEntry)
        for line in lines:
            yield _as(path, line.get("entry"), ChainEntry)

    return EarlierExport(state, heads, remaining())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        while line := file.readline(LINE_BYTES_MAX):
            try:
                document = json.loads(line)
            except ValueError as error:
                raise ArchiveError(f"{path} is damaged: {error}") from None
            if not isinstance(document, dict):
                raise ArchiveError(f"{path} is damaged")
            yield document


def _as(path: Path, value: object, type_: type[T]) -> T:
    try:
        return msgspec.convert(value, type_)
    except (msgspec.ValidationError, KeyError) as error:
        raise ArchiveError(f"{path} is damaged: {error}") from None


def verify_file(path: Path, range_: Range, trusted: EarlierExport | None) -> VerificationReport:
    """Verify an export, without a server. ``trusted``: heads that were kept elsewhere. Raises ArchiveError."""
    kept = read(path)
    return _verify(kept.state, kept.heads, kept.entries, range_, trusted)


def verify_server(client: Client, range_: Range, trusted: EarlierExport | None) -> VerificationReport:
    """Verify the chain of a server. Raises ArchiveError."""
    for attempt in range(1, TRIES_MAX + 1):
        state = settled(client)
        heads = [head for head in fetch_heads(client) if head.seq <= state.seq]
        after = _bounds(state, heads, range_)[0]
        report = _verify(state, heads, fetch_entries(client, after, state.seq), range_, trusted)
        erased_meanwhile = report.faults and all(fault.kind is FaultKind.ERASED for fault in report.faults)
        if client.audit_chain()["start_seq"] == state.start_seq and (not erased_meanwhile or attempt == TRIES_MAX):
            return report
    raise ArchiveError("old records were removed during verification: try again")


def _verify(
    state: ChainState,
    heads: Sequence[SignedHead],
    chain: Iterator[ChainEntry],
    range_: Range,
    trusted: EarlierExport | None,
) -> VerificationReport:
    after, until = _bounds(state, heads, range_)
    if trusted is not None and trusted.state.chain != state.chain:
        raise ArchiveError(f"the heads are of another log: {trusted.state.chain}, not {state.chain}")
    hashes = {head.seq: head.hash for head in heads} | {state.start_seq: state.start_hash}
    kept: Sequence[SignedHead] = () if trusted is None else trusted.heads
    keys: list[PublicKey] | None = None if trusted is None else trusted.state.keys
    start = (after, hashes.get(after))
    verifier = Verifier(state, start, _within(heads, after, until), _within(kept, after, until), keys)
    chosen = (entry for entry in chain if after < entry.seq <= until)
    return verification.verify(verifier, chosen, to_the_end=until == END)


def _within(heads: Sequence[SignedHead], after: int, until: int) -> list[SignedHead]:
    return [head for head in heads if after <= head.seq <= until]


def _bounds(state: ChainState, heads: Sequence[SignedHead], range_: Range) -> tuple[int, int]:
    """Return the number of the entry before the range, and of its last one. Times are rounded to heads."""
    begin, end = range_
    if isinstance(begin, datetime):
        begin = max((head.seq for head in heads if head.at <= begin), default=state.start_seq) + 1
    if isinstance(end, datetime):
        end = min((head.seq for head in heads if head.at >= end), default=state.seq)
    after = state.start_seq if begin is None else max(state.start_seq, begin - 1)
    return after, END if end is None else end
