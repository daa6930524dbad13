"""WAL files: what their names say, what follows what, and how far a base backup can be brought with them.

See PostgreSQL's manual, "Continuous Archiving and Point-in-Time Recovery", "Timelines".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

SEGMENT = re.compile(r"[0-9A-F]{24}\Z")
HISTORY = re.compile(r"[0-9A-F]{8}\.history\Z")
PARTIAL = ".partial"
"""Ends the name of a segment that is not full yet, as pg_receivewal has it."""
LOG_BYTES = 1 << 32
"""Of what the middle third of a segment's name counts."""
TIMELINES_MAX = 1000


class WalFile(NamedTuple):
    """A WAL file in a repository."""

    name: str
    snapshot: str
    until: datetime
    """All that was committed before is in the files up to this one."""


class Branch(NamedTuple):
    """A timeline as a part of another's history: which bytes of WAL (LSN) are its own."""

    timeline: int
    begin: int
    end: int | None
    """Where the next one begins; None: it is the newest."""


class Coverage(NamedTuple):
    """What follows a base backup without a gap."""

    files: tuple[WalFile, ...]
    """In order."""
    until: datetime | None
    """All that was committed before can be restored; None: nothing follows."""


def lsn(text: str) -> int:
    """Return a position in WAL. Raises ValueError."""
    high, separator, low = text.partition("/")
    if not separator:
        raise ValueError(f"{text!r} is not a WAL position")
    return (int(high, 16) << 32) + int(low, 16)


def segment_name(timeline: int, number: int, segment_bytes: int) -> str:
    """Return the name of a segment; ``number`` counts from the beginning of all WAL."""
    log, part = divmod(number, LOG_BYTES // segment_bytes)
    return f"{timeline:08X}{log:08X}{part:08X}"


def number_of(name: str, segment_bytes: int) -> int:
    """Return a segment's number from its name."""
    return int(name[8:16], 16) * (LOG_BYTES // segment_bytes) + int(name[16:24], 16)


def timeline_of(name: str) -> int:
    return int(name[:8], 16)


def is_partial(name: str) -> bool:
    return name.endswith(PARTIAL)


def is_wal(name: str) -> bool:
    """Say whether this is the name of a segment, full or not, or of a timeline's history."""
    return bool(SEGMENT.match(name.removesuffix(PARTIAL)) or HISTORY.match(name))


def history_name(timeline: int) -> str:
    return f"{timeline:08X}.history"


def branches(timeline: int, history: str) -> list[Branch]:
    """Return a timeline and those that it came from, the newest first. Raises ValueError.

    ``history``: the content of its history file; empty for the first timeline.
    """
    switches = list[tuple[int, int]]()
    for line in history.splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            switches.append((int(words[0]), lsn(words[1] if len(words) > 1 else "")))
    if len(switches) > TIMELINES_MAX:
        raise ValueError(f"more than {TIMELINES_MAX} timelines")
    former_branches, begin = list[Branch](), 0
    for former, end in switches:
        former_branches.append(Branch(former, begin, end))
        begin = end
    return [Branch(timeline, begin, None), *reversed(former_branches)]


def coverage(
    stop: int, stop_timeline: int, history: Sequence[Branch], stored: Mapping[str, WalFile], segment_bytes: int
) -> Coverage | None:  # fmt: skip
    """Return what follows a base backup that ends at LSN ``stop``; None: it is not of this history.

    The backup holds the segments up to its end itself.
    """
    own = next((branch for branch in history if branch.timeline == stop_timeline), None)
    if own is None or stop < own.begin or (own.end is not None and stop > own.end):
        return None
    number = (stop - 1) // segment_bytes
    first = _file(number, history, stored, segment_bytes)
    files = [] if first is None else [first]
    while (following := _file(number + 1, history, stored, segment_bytes)) is not None:
        files.append(following)
        number += 1
        if is_partial(following.name) and timeline_of(following.name) == history[0].timeline:
            break
    return Coverage(tuple(files), max((file.until for file in files), default=None))


def _file(
    number: int, history: Sequence[Branch], stored: Mapping[str, WalFile], segment_bytes: int
) -> WalFile | None:  # fmt: skip
    """Return the file with a segment: of the newest timeline that may have it, as PostgreSQL looks for it."""
    for branch in history:
        begins = branch.begin // segment_bytes <= number
        ends = branch.end is not None and branch.end // segment_bytes < number
        if begins and not ends:
            name = segment_name(branch.timeline, number, segment_bytes)
            file = stored.get(name) or stored.get(name + PARTIAL)
            if file is not None:
                return file
    return None


def expired_bases(bases: Iterable[tuple[str, datetime]], now: datetime, keep: timedelta) -> list[str]:
    """Return the ids of base backups that no time within ``keep`` needs: all that have a successor as old as that."""
    old = sorted((at, id) for id, at in bases if at <= now - keep)
    return [id for _, id in old[:-1]]


def superseded(names: Iterable[str], first_number: int, segment_bytes: int) -> list[str]:
    """Return the segments before the one that the oldest base backup begins with. Histories stay: they are small."""
    return [
        name for name in names
        if not HISTORY.match(name) and number_of(name, segment_bytes) < first_number
    ]  # fmt: skip
