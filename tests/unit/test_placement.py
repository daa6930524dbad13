"""Pages that are taken out of QEMU's stream and placed: memory is what QEMU would have made of all of it."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import random
import struct
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.agent.migration.direct_placement import PlacingPipe
from novacron.qemu.memory import MemoryBlock, check_private, touched
from novacron.qemu.placement import WAITING_BYTES_MAX, PlacedBlock, Placer, Unplaceable
from novacron.qemu.process_memory import PAGES_MAX, PageRun, ProcessMemory, address_of
from novacron.qemu.stream import PAGE, RAM_START
from tests.unit.test_stream import CONFIGURATION, DEVICES, FOOTER, RAM_ID, named, page, stream, word

SIZES = {b"pc.ram": 40, b"memory1": 12, b"vga.vram": 8, b"rom": 3}
"""Blocks of a guest's, in pages. The first two are placed."""
PLACED = (b"pc.ram", b"memory1")
Record = tuple[bytes, int, int, int]
"""Block, page, how many in a row, and what: -1 pages of random bytes, else pages of this byte."""


class Memory:
    """A block of this process's own memory, with a page before and after it that is nobody's business."""

    def __init__(self, name: bytes, pages: int, before: dict[int, bytes] | None = None) -> None:
        self._map = mmap.mmap(-1, (pages + 2) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.block = MemoryBlock(name, address + PAGE, pages * PAGE)
        for number, data in (before or {}).items():
            self._map[(number + 1) * PAGE : (number + 2) * PAGE] = data

    @property
    def data(self) -> bytes:
        """Its contents. Raises AssertionError if what is around it has changed."""
        assert not any(self._map[:PAGE]) and not any(self._map[-PAGE:]), "written outside of the block"
        return self._map[PAGE:-PAGE]

    def placed(self) -> PlacedBlock:
        return PlacedBlock(self.block, touched(os.getpid(), self.block))


class Qemu:
    """What QEMU's ``ram_load`` makes of a stream that it can read, in the simplest words; the rest it keeps."""

    def __init__(self, before: dict[bytes, dict[int, bytes]]) -> None:
        self.memory = {name: bytearray(pages * PAGE) for name, pages in SIZES.items()}
        self.others = b""
        for name, pages in before.items():
            for number, data in pages.items():
                self.memory[name][number * PAGE : (number + 1) * PAGE] = data

    def load(self, raw: bytes) -> None:
        at = raw.index(RAM_START)
        self.others, at, block = raw[:at], at + len(RAM_START), b""
        while True:
            (header,) = struct.unpack_from("!Q", raw, at)
            at, flags = at + 8, header & 0xFFF
            if flags == 0x10:
                assert raw[at : at + 5] == FOOTER
                at += 5
                if raw[at] not in (2, 3):
                    self.others += raw[at:]
                    return
                at += 5
            elif flags == 0x04:
                listed = 0
                while listed < header & ~0xFFF:
                    at += 1 + raw[at]
                    listed += struct.unpack_from("!Q", raw, at)[0]
                    at += 8
            else:
                if not flags & 0x20:
                    block, at = raw[at + 1 : at + 1 + raw[at]], at + 1 + raw[at]
                assert block, "QEMU refuses a record that goes on with no block"
                data = raw[at : at + PAGE] if flags & 0x08 else raw[at : at + 1] * PAGE
                at += PAGE if flags & 0x08 else 1
                self.memory[block][header & ~0xFFF : (header & ~0xFFF) + PAGE] = data


def pass_of(records: list[Record], seeds: Iterator[int]) -> bytes:
    """Return a pass over the memory as QEMU tells it: a block's name once for all its pages that follow each other."""
    told, last = b"", b""
    for name, first, count, fill in records:
        for number in range(first, min(first + count, SIZES[name])):
            flags = (0x08 if fill < 0 else 0x02) | (0x20 if name == last else 0)
            body = page(next(seeds)) if fill < 0 else bytes((fill,))
            told += word(number * PAGE, flags) + (b"" if name == last else named(name)) + body
            last = name
    return told


RECORDS = st.lists(
    st.sampled_from(list(SIZES)).flatmap(
        lambda name: st.tuples(
            st.just(name), st.integers(0, SIZES[name] - 1), st.integers(1, 20), st.sampled_from((-1, -1, 0, 0, 7))
        )
    ),
    min_size=1, max_size=12,
)  # fmt: skip
BEFORE = st.sets(st.integers(0, SIZES[b"memory1"] - 1), max_size=6)


@given(st.lists(RECORDS, min_size=1, max_size=3), BEFORE, st.lists(st.integers(0, 1 << 20), max_size=12))
def test_memory_is_what_qemu_would_have_made_of_the_whole_stream(
    passes: list[list[Record]], numbers: set[int], cuts: list[int]
) -> None:
    """Whatever the blocks, the order of pages, what was there before, and however the stream is cut."""
    seeds = itertools.count()
    raw = stream([pass_of(records, seeds) for records in passes])
    before = {name: {number: page(1000 + number) for number in numbers} for name in PLACED}
    whole, rest = Qemu(before), Qemu({})
    whole.load(raw)
    memories = {name: Memory(name, SIZES[name], before[name]) for name in PLACED}
    placer = Placer([memory.placed() for memory in memories.values()], ProcessMemory(os.getpid()))
    edges = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    left = b"".join(placer.take(raw[start:end]) for start, end in itertools.pairwise(edges))
    placer.finish()
    rest.load(left)
    assert {name: memory.data for name, memory in memories.items()} == {name: whole.memory[name] for name in PLACED}
    assert all(not any(rest.memory[name]) for name in PLACED), "QEMU was given a page that was placed"
    assert all(rest.memory[name] == whole.memory[name] for name in SIZES if name not in PLACED)
    assert rest.others == whole.others


def test_nothing_is_written_for_zero_pages_of_memory_that_nobody_touched() -> None:
    memory = Memory(b"pc.ram", SIZES[b"pc.ram"])
    zeros = pass_of([(b"pc.ram", 0, SIZES[b"pc.ram"], 0)], itertools.count())
    left = Placer([memory.placed()], ProcessMemory(os.getpid())).take(stream([zeros]))
    assert len(left) < len(CONFIGURATION) + len(DEVICES) + 200, "nor is QEMU told of them"
    assert not any(touched(os.getpid(), memory.block))


def test_pages_are_there_before_qemu_is_given_what_follows_them() -> None:
    memory = Memory(b"pc.ram", SIZES[b"pc.ram"])
    seen: list[bytes] = []

    class Reading:
        """Looks at the memory whenever QEMU is given something."""

        def write(self, _data: bytes) -> None:
            seen.append(memory.data[:PAGE])

        def finish(self) -> None:
            pass

        def abort(self) -> None:
            pass

    pipe = PlacingPipe(Reading(), Placer([memory.placed()], ProcessMemory(os.getpid())), lambda: None)
    pipe.write(stream([pass_of([(b"pc.ram", 0, 1, -1)], itertools.count(5))]))
    assert seen == [page(5)]


@pytest.mark.parametrize(
    "record",
    [
        word(40 * PAGE, 0x08) + named(b"pc.ram") + page(1),
        word(1 << 63, 0x08) + named(b"pc.ram") + page(1),
        word(40 * PAGE, 0x02) + named(b"pc.ram") + b"\0",
        word(40 * PAGE, 0x02) + named(b"pc.ram") + b"\7",
        word(39 * PAGE, 0x08) + named(b"pc.ram") + page(1) + word(40 * PAGE, 0x28) + page(2),
        word(39 * PAGE, 0x08) + named(b"pc.ram") + page(1) + b"".join(word(n * PAGE, 0x22) + b"\0" for n in (39, 40)),
    ],
    ids=["next page", "far away", "zero", "filled", "end of a run", "end of a run of zeros"],
)
def test_no_page_outside_of_its_block_is_placed(record: bytes) -> None:
    memory = Memory(b"pc.ram", SIZES[b"pc.ram"])
    refused: list[bool] = []
    pipe = PlacingPipe(
        _Nowhere(), Placer([memory.placed()], ProcessMemory(os.getpid())), lambda: refused.append(True)
    )  # fmt: skip
    with pytest.raises(Unplaceable, match=r"not in pc\.ram, which has 40 pages"):
        pipe.write(stream([record]))
    assert not any(memory.data) and refused


class _Nowhere:
    """A sink for what nobody wants."""

    def write(self, data: bytes) -> None:
        pass

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass


def _placer() -> tuple[Placer, Memory]:
    memory = Memory(b"pc.ram", SIZES[b"pc.ram"])
    return Placer([memory.placed()], ProcessMemory(os.getpid())), memory


@pytest.mark.parametrize("flags", [0x100, 0x200, 0x400, 0x01, 0x40, 0x80])
def test_an_unknown_record_ends_the_placing(flags: int) -> None:
    """QEMU could not tell which block the records after it are of."""
    known = pass_of([(b"pc.ram", 0, 3, -1)], itertools.count())
    with pytest.raises(Unplaceable, match="not known"):
        _placer()[0].take(stream([known + word(0, flags) + bytes(100)]))


@pytest.mark.parametrize("kind", [0x01, 0x02, 0x04, 0x05])
def test_a_section_of_something_else_between_two_of_memory_ends_the_placing(kind: int) -> None:
    raw = stream([b""])
    end = raw.index(b"\x03" + RAM_ID)
    with pytest.raises(Unplaceable, match="not known"):
        _placer()[0].take(raw[:end] + bytes((kind,)) + b"\0\0\0\x09" + bytes(20))


def test_a_stream_that_ends_within_a_record_is_refused() -> None:
    placer, _ = _placer()
    raw = stream([pass_of([(b"pc.ram", 0, 3, -1)], itertools.count())])
    placer.take(raw[: -len(DEVICES) - 100])
    with pytest.raises(Unplaceable, match="middle of a record"):
        placer.finish()


def test_a_record_without_end_is_refused_before_it_fills_memory() -> None:
    placer, _ = _placer()
    start = CONFIGURATION + b"\x01" + RAM_ID + RAM_START + word((1 << 63), 4)
    placer.take(start)
    with pytest.raises(Unplaceable, match="a record of more than"):
        placer.take((named(b"pc.ram") + bytes(8)) * (WAITING_BYTES_MAX // 10))


class Interrupted(ProcessMemory):
    """Writes a part of what it is asked for, as Linux may."""

    def _transfer(self, function: ctypes._NamedFuncPointer, here: array[int], there: array[int]) -> int:
        pages = max(1, len(here) // 2 // 3)
        here, left, cut = here[: 2 * pages], pages * PAGE, array("Q")
        for address, length in zip(there[::2], there[1::2], strict=True):
            cut.extend((address, min(length, left)))
            left -= min(length, left)
        return super()._transfer(function, here, cut) - (PAGE // 2 if pages > 1 else 0)


def test_what_was_written_in_part_is_written_on() -> None:
    memory = Memory(b"pc.ram", 3 * PAGES_MAX)
    data = random.Random(1).randbytes(2 * PAGES_MAX * PAGE)
    zero, at = bytes(PAGE), memory.block.address
    runs = [
        PageRun(at, 5, address_of(data), PAGE),
        PageRun(at + 3 * PAGE, 4, address_of(zero), 0),
        PageRun(at + 10 * PAGE, 2 * PAGES_MAX, address_of(data), PAGE),
    ]
    Interrupted(os.getpid()).write(runs)
    assert memory.data.rstrip(b"\0") == (data[: 3 * PAGE] + bytes(7 * PAGE) + data).rstrip(b"\0")


def test_memory_that_is_not_there_is_an_error() -> None:
    memory = Memory(b"pc.ram", 4)
    with pytest.raises(OSError, match="Bad address"):
        ProcessMemory(os.getpid()).write([PageRun(1 << 46, 4, address_of(bytes(4 * PAGE)), PAGE)])
    assert not any(memory.data)


def test_memory_of_a_file_or_that_is_shared_is_not_placed() -> None:
    shared = mmap.mmap(-1, 4 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(shared))
    with pytest.raises(OSError, match="not private memory"):
        check_private(os.getpid(), MemoryBlock(b"pc.ram", address, 4 * PAGE))
    private = Memory(b"pc.ram", 4)
    check_private(os.getpid(), private.block)
