"""What an import writes, and what it leaves as a hole."""

from __future__ import annotations

import itertools
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from novacron.agent.images.writer import HOLE_BYTES, Writer, _filled


@given(st.lists(st.tuples(st.booleans(), st.integers(1, HOLE_BYTES)), max_size=12))
@settings(max_examples=60)
def test_data_extents_cover_everything_that_is_not_zero(parts: list[tuple[bool, int]]) -> None:
    piece = b"".join((b"x" if full else b"\0") * count for full, count in parts)
    extents = list(_filled(piece))
    rest = bytearray(piece)
    for start, end in extents:
        assert start % HOLE_BYTES == 0 and 0 <= start < end <= len(piece)
        rest[start:end] = bytes(end - start)
    assert not any(rest), "nothing but zeros is left out"
    assert all(extent[1] < other[0] for extent, other in itertools.pairwise(extents)), "in order, and apart"


def test_a_file_is_written_unchanged_with_its_holes(tmp_path: Path) -> None:
    pieces = [b"a" * HOLE_BYTES + bytes(3 * HOLE_BYTES), bytes(2 * HOLE_BYTES), b"\0b", b"c" * 5]
    writer = Writer(tmp_path / "disk")
    for piece in pieces:
        writer.write(piece)
    writer.close()
    assert (tmp_path / "disk").read_bytes() == b"".join(pieces)
    assert (tmp_path / "disk").stat().st_blocks * 512 < 4 * HOLE_BYTES
