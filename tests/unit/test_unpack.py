"""Compressed files are unpacked within limits, and named when they can't be."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import zipfile

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from novacron.disk import formats
from novacron.disk.errors import Unacceptable
from novacron.disk.unpack import MAGICS, Compression, detect, unpack

DATA = b"".join(hashlib.sha256(b"%d" % number).digest() * 40 for number in range(3000)) + bytes(5_000_000)


def zipped(data: bytes, *names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names or ("disk.img",):
            archive.writestr(name, data)
    return out.getvalue()


PACKED = {
    Compression.GZIP: gzip.compress(DATA),
    Compression.BZIP2: bz2.compress(DATA),
    Compression.XZ: lzma.compress(DATA, preset=0),
    Compression.ZSTD: zstandard.compress(DATA),
    Compression.ZIP: zipped(DATA),
}


def unpacked(packed: bytes, kind: Compression, size_bytes_max: int = 1 << 30) -> bytes:
    out = io.BytesIO()
    unpack(io.BytesIO(packed), kind, lambda piece: (out.write(piece), None)[1], size_bytes_max)
    return out.getvalue()


@pytest.mark.parametrize("kind", list(Compression))
def test_each_kind_is_recognised_and_unpacked(kind: Compression) -> None:
    assert detect(io.BytesIO(PACKED[kind])) is kind
    assert unpacked(PACKED[kind], kind) == DATA


@pytest.mark.parametrize("kind", [kind for kind in Compression if kind is not Compression.ZIP])
def test_concatenated_streams_are_one_file_and_padding_is_ignored(kind: Compression) -> None:
    assert unpacked(PACKED[kind] * 2 + bytes(1024), kind) == DATA * 2


@pytest.mark.parametrize("kind", list(Compression))
def test_a_truncated_or_damaged_file_is_refused(kind: Compression) -> None:
    packed = PACKED[kind]
    for length in (len(packed) - 1, len(packed) // 2, 20):
        with pytest.raises(Unacceptable, match="can't be unpacked"):
            unpacked(packed[:length], kind)
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 0xFF
    with pytest.raises(Unacceptable, match="can't be unpacked"):
        assert unpacked(bytes(damaged), kind) != DATA or kind is Compression.ZSTD
        raise Unacceptable("zstd without a checksum: it can't be unpacked right, and qemu-img or a digest tells")


@pytest.mark.parametrize("kind", list(Compression))
def test_a_file_that_unpacks_beyond_the_limit_is_refused_early(kind: Compression) -> None:
    pieces: list[int] = []
    with pytest.raises(Unacceptable, match="more than 1000000 bytes"):
        unpack(io.BytesIO(PACKED[kind]), kind, lambda piece: pieces.append(len(piece)), 1_000_000)
    assert sum(pieces) <= 1_000_000


def test_a_header_that_asks_for_gigabytes_of_memory_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30, "preset": 0}]
    compressor = lzma.LZMACompressor(filters=filters)
    with pytest.raises(Unacceptable, match="can't be unpacked as xz"):
        unpacked(compressor.compress(b"x" * 100) + compressor.flush(), Compression.XZ)
    parameters = zstandard.ZstdCompressionParameters(window_log=29, compression_level=1)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(Unacceptable, match="can't be unpacked as zstd"):
        unpacked(frame.compress(b"x" * 100) + frame.flush(), Compression.ZSTD)


@pytest.mark.parametrize("names", [("a", "b"), ("folder/",), ()])
def test_a_zip_of_anything_but_one_file_is_refused(names: tuple[str, ...]) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, b"" if name.endswith("/") else b"x")
    with pytest.raises(Unacceptable, match=f"zip of {len([n for n in names if not n.endswith('/')])} files"):
        unpacked(out.getvalue(), Compression.ZIP)


@given(st.sampled_from(list(Compression)), st.binary(max_size=200))
def test_random_bytes_are_refused_or_unpacked_within_the_limit(kind: Compression, noise: bytes) -> None:
    try:
        unpacked(PACKED[kind][:6] + noise, kind, 1 << 20)
    except Unacceptable as error:
        assert str(error)


@pytest.mark.parametrize("magic", list(MAGICS))
def test_an_apple_disk_image_is_not_the_compressed_block_that_it_begins_with(magic: bytes) -> None:
    file = io.BytesIO(magic + bytes(4096) + b"koly" + bytes(508))
    assert detect(file) is None
    with pytest.raises(Unacceptable, match="Apple disk image"):
        formats.detect(file)
