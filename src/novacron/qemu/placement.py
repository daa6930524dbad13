"""Pages of QEMU's migration stream that are put where the target's QEMU has its guest's memory, past QEMU.

What is left of the stream goes to QEMU, which does not mind that pages are missing: it loads what comes. Of a block of
memory either every record is placed or none, so two hands never write to one page. docs/adr/0073.
"""

from __future__ import annotations

from collections.abc import Sequence

from novacron.qemu.memory import PAGE, MemoryBlock
from novacron.qemu.process_memory import PageRun, ProcessMemory, address_of
from novacron.qemu.stream import CONTINUE, FLAGS, OPAQUE_RUN, PAGES_RUN, RECORD, ZERO, ZERO_RUN, RamSplitter, Run

WAITING_BYTES_MAX = 64 * 1024
"""A record is shorter, and so is the list of the blocks' sizes."""
ZERO_PAGE = bytes(PAGE)
_ONE = b"\1"


class Unplaceable(OSError):
    """The stream is not what this module knows, or names memory that is not there: says why. What was placed so far
    must be thrown away with its QEMU."""


class PlacedBlock:
    """A block whose pages are placed. ``touched``: a byte for each page, 0 if the page is zero."""

    def __init__(self, block: MemoryBlock, touched: bytearray) -> None:
        self.name = block.name
        self._address, self._touched = block.address, touched
        self._pages = block.size // PAGE

    def pages(self, header: int, count: int, source: int, stride: int) -> PageRun:
        """Return what places pages that begin at ``source``. Raises Unplaceable."""
        first = self._first(header, count)
        self._touched[first : first + count] = _ONE * count
        return PageRun(self._address + first * PAGE, count, source, stride)

    def zeros(self, header: int, count: int) -> list[PageRun]:
        """Return what makes pages zero that are not. Raises Unplaceable."""
        first = self._first(header, count)
        end, touched, runs = first + count, self._touched, []
        at = touched.find(1, first, end)
        while at >= 0:
            stop = touched.find(0, at, end)
            stop = end if stop < 0 else stop
            runs.append(PageRun(self._address + at * PAGE, stop - at, address_of(ZERO_PAGE), 0))
            at = touched.find(1, stop, end)
        touched[first:end] = bytes(count)
        return runs

    def _first(self, header: int, count: int) -> int:
        first = header // PAGE
        if first + count > self._pages:
            name = self.name.decode(errors="replace")
            raise Unplaceable(f"a page at {header & ~FLAGS:#x} is not in {name}, which has {self._pages} pages")
        return first


class Placer:
    """Takes the pages of some blocks out of a stream, and places them."""

    def __init__(self, blocks: Sequence[PlacedBlock], memory: ProcessMemory) -> None:
        self._blocks = {block.name: block for block in blocks}
        self._memory = memory
        self._splitter = RamSplitter()
        self._block: PlacedBlock | None = None
        """That of the last record, if its pages are placed."""
        self.pages = 0
        """How many were placed, each as often as it came."""

    def take(self, data: bytes) -> bytes:
        """Place the pages in the stream's next bytes; return what QEMU is to be given once this has returned.

        Raises Unplaceable; OSError when QEMU has ended.
        """
        data, runs = self._splitter.records(data)
        if self._splitter.lost:
            raise Unplaceable("QEMU's stream of the guest's memory has something that is not known here")
        if self._splitter.waiting_bytes > WAITING_BYTES_MAX:
            raise Unplaceable(f"QEMU's stream has a record of more than {WAITING_BYTES_MAX} bytes")
        passed: list[bytes] = []
        placed: list[PageRun] = []
        filled: list[bytes] = []
        """Holds what ``placed`` refers to."""
        begin = address_of(data)
        for run in runs:
            kind, at, count, header, _, bare = run
            if kind == OPAQUE_RUN and bare:
                self._take_head(data, run, passed, placed, filled)
            elif self._block is None or kind == OPAQUE_RUN:
                passed.append(data[at : at + _length(run)])
            elif kind == PAGES_RUN:
                placed.append(self._block.pages(header, count, begin + at + (0 if bare else 8), RECORD))
            else:
                placed += self._block.zeros(header, count)
        self._memory.write(placed)
        self.pages += sum(run.pages for run in placed)
        return b"".join(passed)

    def _take_head(
        self, data: bytes, run: Run, passed: list[bytes], placed: list[PageRun], filled: list[bytes]
    ) -> None:  # fmt: skip
        """Take a record that names its block, or has another fill byte than 0: all but its page, if it has one."""
        _, at, count, header, _, _ = run
        if not header & CONTINUE:
            self._block = self._blocks.get(data[at + 9 : at + 9 + data[at + 8]])
        if self._block is None:
            passed.append(data[at : at + count])
        elif header & ZERO:
            fill = data[at + count - 1]
            if fill:
                filled.append(bytes((fill,)) * PAGE)
                placed.append(self._block.pages(header, 1, address_of(filled[-1]), 0))
            else:
                placed += self._block.zeros(header, 1)

    def finish(self) -> None:
        """The stream has ended. Raises Unplaceable if it did so in the middle of something."""
        if self._splitter.waiting_bytes:
            raise Unplaceable("QEMU's stream ended in the middle of a record")


def _length(run: Run) -> int:
    """Return how many bytes of the stream a run is."""
    kind, _, count, _, _, bare = run
    if kind == OPAQUE_RUN:
        return count
    return count * 9 if kind == ZERO_RUN else count * (PAGE if bare else RECORD)
