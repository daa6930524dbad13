"""QEMU's migration stream: where in it the pages of the guest's memory are.

The format is that of QEMU's ``migration/savevm.c`` and ``migration/ram.c`` (docs/devel/migration): a header, a
configuration, sections. The section ``ram`` holds records: a 64-bit word, which is a page's address with flags in its
low 12 bits, and what the flags say. From the first thing that this module does not know, the rest of the stream is
opaque.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

PAGE = 4096
RECORD = 8 + PAGE
RAM_START = b"\x03ram" + struct.pack("!II", 0, 4)
"""Name, instance and version of the one section whose contents are known."""
SECTION_START, SECTION_PART, SECTION_END, COMMAND, FOOTER = 0x01, 0x02, 0x03, 0x08, 0x7E
COMMAND_PACKAGED = 7
# RAM_SAVE_FLAG_* of migration/ram.c
ZERO, SIZES, PLAIN, END, CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
ZERO_AGAIN, PLAIN_AGAIN = ZERO | CONTINUE, PLAIN | CONTINUE
FLAGS = 0xFFF
_word: Callable[[bytes, int], tuple[int]] = struct.Struct("!Q").unpack_from

_ZEROS = 256
_ZEROS_BYTES = _ZEROS * 9
_ADDRESSES = sum(1 << 8 + 72 * (_ZEROS - 1 - number) for number in range(_ZEROS))
"""As many records of zero pages as one large number: that of the header in each of them, and what is added to it."""
_OFFSETS = sum(number * PAGE << 8 + 72 * (_ZEROS - 1 - number) for number in range(_ZEROS))
OPAQUE_RUN, ZERO_RUN, PAGES_RUN = 0, 1, 2
Run = tuple[int, int, int, int, int, bool]
"""``(kind, at, count, header, space, bare)``: see the page codec. Before runs are merged, an opaque one that is
``bare`` is the head of a record: all of it but its page, with its header's word and its block."""


class RamSplitter:
    """Cuts the stream into runs of zero pages, of other pages, and of opaque bytes."""

    def __init__(self) -> None:
        self.packaged = False
        """The devices were sent in one package: the guest's memory follows it (post-copy)."""
        self.lost = False
        """Something is not known, and what follows may be memory."""
        self._rest = b""
        self._kind = SECTION_START
        self._complete = False
        """The last section of memory has ended."""
        self._find = self._preamble
        self._seen = b""
        self._section = b""
        self._blocks: dict[bytes, int] = {}
        self._block = 0

    @property
    def waiting_bytes(self) -> int:
        """What is understood only with what follows it."""
        return len(self._rest)

    def split(self, data: bytes) -> tuple[bytes, list[Run]]:
        """Take the stream's next bytes; return those that are understood by now, and the runs that they consist of."""
        data, runs = self.records(data)
        return data, _merged(runs)

    def records(self, data: bytes) -> tuple[bytes, list[Run]]:
        """As ``split``, but opaque runs are not merged: each head of a record is one of its own."""
        data = self._rest + data
        runs: list[Run] = []
        at = 0
        while at < len(data):
            end = self._find(data, at, runs)
            if end == at:
                break
            at = end
        self._rest = data[at:]
        return data[:at], runs

    def finish(self) -> tuple[bytes, list[Run]]:
        """Return the rest of a stream that has ended, perhaps in the middle of a record."""
        rest, self._rest = self._rest, b""
        return rest, [(OPAQUE_RUN, 0, len(rest), 0, 0, False)] if rest else []

    # Each parses the data from `at` on, appends runs, and returns where they end: `at` if it needs more data.

    def _preamble(self, data: bytes, at: int, runs: list[Run]) -> int:
        """All up to the start of the memory's section, which may begin in bytes that were passed on before."""
        seen = self._seen + data[at:]
        start = seen.find(RAM_START)
        if start < 5 or seen[start - 5] != SECTION_START:
            self._seen = seen[-len(RAM_START) - 5 :]
            end = len(data)
        else:
            end = at + start + len(RAM_START) - len(self._seen)
            self._section = seen[start - 4 : start]
            self._find = self._records
        runs.append((OPAQUE_RUN, at, end - at, 0, 0, False))
        return end

    def _opaque(self, data: bytes, at: int, runs: list[Run]) -> int:
        runs.append((OPAQUE_RUN, at, len(data) - at, 0, 0, False))
        return len(data)

    def _give_up(self, data: bytes, at: int, runs: list[Run]) -> int:
        self.lost = not self._complete
        self._find = self._opaque
        return self._opaque(data, at, runs)

    def _records(self, data: bytes, at: int, runs: list[Run]) -> int:
        end = len(data)
        while at + 9 <= end:
            header = _word(data, at)[0]
            flags = header & FLAGS
            begin = at
            if flags == ZERO_AGAIN and data[at + 8] == 0:
                at = _zero_run_end(data, at, header)
                runs.append((ZERO_RUN, begin, (at - begin) // 9, header, self._block, False))
            elif flags == PLAIN_AGAIN:
                at = _page_run_end(data, at, header)
                if at == begin:
                    return at
                runs.append((PAGES_RUN, begin, (at - begin) // RECORD, header, self._block, False))
            else:
                read = self._section_end if flags & END else self._other
                at = read(data, at, header, flags, runs)
                if at == begin or self._find != self._records:
                    return at
        return at

    def _section_end(self, data: bytes, at: int, header: int, flags: int, runs: list[Run]) -> int:
        """A record that ends a section, and the section's footer."""
        if flags != END:
            return self._give_up(data, at, runs)
        if at + 13 > len(data):
            return at
        if data[at + 8] != FOOTER or data[at + 9 : at + 13] != self._section:
            return self._give_up(data, at, runs)
        runs.append((OPAQUE_RUN, at, 13, 0, 0, False))
        self._complete = self._kind == SECTION_END
        self._find = self._between
        return at + 13

    def _other(self, data: bytes, at: int, header: int, flags: int, runs: list[Run]) -> int:
        """A record that names its block, has another fill byte, or lists the blocks' sizes."""
        end = len(data)
        if flags == SIZES:
            remaining_bytes, stop = header & ~FLAGS, at + 8
            while remaining_bytes > 0:
                if stop >= end or stop + 9 + data[stop] > end:
                    return at
                remaining_bytes -= _word(data, stop + 1 + data[stop])[0]
                stop += 9 + data[stop]
            runs.append((OPAQUE_RUN, at, stop - at, 0, 0, False))
            return stop
        if flags not in (ZERO, PLAIN, ZERO_AGAIN):
            return self._give_up(data, at, runs)
        body = at + 8
        if not flags & CONTINUE:
            body += 1 + data[at + 8]
            if body > end:
                return at
        stop = body + (PAGE if flags & PLAIN else 1)
        if stop > end:
            return at
        if not flags & CONTINUE:
            name = data[at + 9 : body]
            self._block = self._blocks.setdefault(name, len(self._blocks))
        if flags & PLAIN:
            runs.append((OPAQUE_RUN, at, body - at, header, self._block, True))
            runs.append((PAGES_RUN, body, 1, header, self._block, True))
        else:
            runs.append((OPAQUE_RUN, at, stop - at, header, self._block, True))
        return stop

    def _between(self, data: bytes, at: int, runs: list[Run]) -> int:
        """Between two sections: more of the memory, a command, or the devices, which are opaque."""
        kind = data[at]
        if kind in (SECTION_PART, SECTION_END):
            if at + 5 > len(data):
                return at
            if data[at + 1 : at + 5] == self._section:
                runs.append((OPAQUE_RUN, at, 5, 0, 0, False))
                self._kind, self._complete = kind, False
                self._find = self._records
                return at + 5
        elif kind == COMMAND:
            if at + 5 > len(data):
                return at
            number, length = int.from_bytes(data[at + 1 : at + 3], "big"), int.from_bytes(data[at + 3 : at + 5], "big")
            stop = at + 5 + length
            if number == COMMAND_PACKAGED and length == 4 and stop <= len(data):
                stop += int.from_bytes(data[at + 5 : at + 9], "big")
            if stop > len(data):
                return at
            runs.append((OPAQUE_RUN, at, stop - at, 0, 0, False))
            self.packaged = self.packaged or number == COMMAND_PACKAGED
            return stop
        return self._give_up(data, at, runs)


def _zero_run_end(data: bytes, at: int, header: int) -> int:
    """Return where a run of records of zero pages ends, whose addresses follow each other."""
    end, expected = len(data), header
    while at + _ZEROS_BYTES <= end and expected + _ZEROS * PAGE < 1 << 64:
        records = (_OFFSETS + expected * _ADDRESSES).to_bytes(_ZEROS_BYTES, "big")
        if data[at : at + _ZEROS_BYTES] != records:
            break
        at, expected = at + _ZEROS_BYTES, expected + _ZEROS * PAGE
    while at + 9 <= end and _word(data, at)[0] == expected and data[at + 8] == 0:
        at, expected = at + 9, expected + PAGE
    return at


def _page_run_end(data: bytes, at: int, header: int) -> int:
    """Return where a run of records with pages ends, whose addresses follow each other."""
    end, expected = len(data), header
    while at + RECORD <= end and _word(data, at)[0] == expected:
        at, expected = at + RECORD, expected + PAGE
    return at


def _merged(runs: list[Run]) -> list[Run]:
    """Return the runs with opaque ones that touch each other joined."""
    merged: list[Run] = []
    for run in runs:
        if run[0] != OPAQUE_RUN:
            merged.append(run)
        elif merged and merged[-1][0] == OPAQUE_RUN:
            merged[-1] = (OPAQUE_RUN, merged[-1][1], merged[-1][2] + run[2], 0, 0, False)
        else:
            merged.append((OPAQUE_RUN, run[1], run[2], 0, 0, False))
    return merged
