"""QEMU's migration stream: its pages are recognised however it is split, and nothing is lost."""

from __future__ import annotations

import itertools
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.qemu.stream import OPAQUE_RUN, PAGE, PAGES_RUN, RAM_START, ZERO_RUN, RamSplitter

RAM_ID = struct.pack("!I", 2)
CONFIGURATION = b"QEVM\0\0\0\3\x07\0\0\0\x0dpc-i440fx-7.2"
DEVICES = b"\x04\0\0\0\0\x05timer\0\0\0\0\0\0\0\2" + bytes(range(256)) * 20
FOOTER = b"\x7e" + RAM_ID


def word(address: int, flags: int) -> bytes:
    return struct.pack("!Q", address | flags)


def named(name: bytes) -> bytes:
    return bytes([len(name)]) + name


def page(seed: int) -> bytes:
    return random.Random(seed).randbytes(PAGE)


def stream(passes: list[bytes]) -> bytes:
    sizes = word(2 * 65536, 4) + named(b"pc.ram") + struct.pack("!Q", 65536) + named(b"rom") + struct.pack("!Q", 65536)
    start = b"\x01" + RAM_ID + RAM_START + sizes + word(0, 0x10) + FOOTER
    middle = b"".join(b"\x02" + RAM_ID + records + word(0, 0x10) + FOOTER for records in passes[:-1])
    return CONFIGURATION + start + middle + b"\x03" + RAM_ID + passes[-1] + word(0, 0x10) + FOOTER + DEVICES


FIRST = (
    word(0, 0x08) + named(b"pc.ram") + page(1)
    + b"".join(word(n * PAGE, 0x28) + page(n) for n in range(1, 5))
    + b"".join(word(n * PAGE, 0x22) + b"\0" for n in range(5, 9))
    + word(0, 0x02) + named(b"rom") + b"\0"
    + word(PAGE, 0x22) + b"\xff"
)  # fmt: skip
SECOND = word(3 * PAGE, 0x08) + named(b"pc.ram") + page(9)


def split(raw: bytes, cuts: list[int]) -> tuple[bytes, list[tuple[int, bytes]]]:
    splitter, back, page_runs = RamSplitter(), b"", []
    edges = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    for start, end in itertools.pairwise(edges):
        data, runs = splitter.split(raw[start:end])
        back += data
        assert sum(run_length(run) for run in runs) == len(data), "runs cover all of it"
        page_runs += [(run[0], data[run[1] : run[1] + run_length(run)]) for run in runs]
    data, runs = splitter.finish()
    return back + data, page_runs + [(run[0], data[run[1] : run[1] + run_length(run)]) for run in runs]


def run_length(run: tuple[int, int, int, int, int, bool]) -> int:
    kind, _, count, _, _, bare = run
    if kind == OPAQUE_RUN:
        return count
    return count * 9 if kind == ZERO_RUN else count * (PAGE if bare else PAGE + 8)


@given(st.lists(st.integers(0, 1 << 20), max_size=40))
def test_pages_are_recognised_and_nothing_is_lost_however_the_stream_is_split(cuts: list[int]) -> None:
    raw = stream([FIRST, SECOND])
    back, page_runs = split(raw, cuts)
    assert back == raw
    pages = b"".join(data for kind, data in page_runs if kind == PAGES_RUN)
    for seed in (1, 2, 3, 4, 9):
        assert page(seed) in pages
    assert sum(len(data) // 9 for kind, data in page_runs if kind == ZERO_RUN) == 4


@pytest.mark.parametrize("count", [255, 256, 257, 1000])
def test_long_runs_of_zero_pages_end_where_addresses_or_bytes_differ(count: int) -> None:
    zeros = b"".join(word(n * PAGE, 0x22) + b"\0" for n in range(count))
    for after in (word((count + 1) * PAGE, 0x22) + b"\0", word(count * PAGE, 0x22) + b"\x01"):
        first = word(0, 0x08) + named(b"pc.ram") + page(1)
        _, page_runs = split(stream([first + zeros + after]), [])
        longest = max((data for kind, data in page_runs if kind == ZERO_RUN), key=len)
        assert longest == zeros


def test_every_address_form_names_the_same_page_of_its_block() -> None:
    _, runs = RamSplitter().split(stream([FIRST, SECOND]))
    spaces = {(run[3] >> 12, run[4], run[5]) for run in runs if run[0] == PAGES_RUN}
    assert spaces == {(0, 0, True), (1, 0, False), (3, 0, True)}


@pytest.mark.parametrize("flags", [0x100, 0x200, 0x400, 0x01, 0x40, 0x80])
def test_an_unknown_record_makes_the_rest_of_the_stream_opaque(flags: int) -> None:
    unknown = word(0, flags) + bytes(100)
    raw = stream([FIRST, unknown + SECOND])
    back, page_runs = split(raw, [])
    assert back == raw
    assert page(9) not in b"".join(data for kind, data in page_runs if kind == PAGES_RUN)
    assert page_runs[-1][0] == OPAQUE_RUN and page(9) in page_runs[-1][1]


def test_an_unknown_version_of_the_memory_section_is_opaque() -> None:
    raw = stream([FIRST]).replace(RAM_START, RAM_START[:-1] + b"\x05")
    back, page_runs = split(raw, [10, 1000])
    assert back == raw and all(kind == OPAQUE_RUN for kind, _ in page_runs)


def test_the_devices_state_is_never_parsed() -> None:
    """A guest controls its devices' state, and must not be able to pass it off as pages."""
    forged = b"\x02" + RAM_ID + word(0, 0x08) + named(b"pc.ram") + page(7)
    back, page_runs = split(stream([FIRST]) + forged, [])
    assert back.endswith(forged) and page_runs[-1][0] == OPAQUE_RUN
    assert page(7) not in b"".join(data for kind, data in page_runs if kind == PAGES_RUN)


@given(st.binary(max_size=3000), st.lists(st.integers(0, 3000), max_size=5))
def test_any_bytes_pass_through_unchanged(raw: bytes, cuts: list[int]) -> None:
    assert split(raw, cuts)[0] == raw
    whole = CONFIGURATION + b"\x01" + RAM_ID + RAM_START + raw
    assert split(whole, cuts)[0] == whole
