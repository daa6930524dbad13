"""A disk's file that was cut off is refused, wherever it was cut."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from novacron.disk.compressed_clusters import COMPRESSED, OVERHANGING_MAX, TYPE_AT, CompressedClusters
from novacron.disk.convert import DRIVERS
from novacron.disk.errors import Unacceptable
from novacron.disk.extent_maps import VHDX_PARAMETERS, bytes_needed, check_whole
from novacron.disk.formats import check, detect
from novacron.model.image import ImageFormat

SIZE = 8 << 20
CUTS = (1, 100, 150, 200, 300, 400, 512, 4096, 9000, 65536)
KINDS = (
    ("qcow2", ""), ("qcow2", "compat=0.10"), ("qcow2", "extended_l2=on,cluster_size=128k"),
    ("qcow2", "cluster_size=512"), ("qcow2", "-c"), ("qcow2", "-c cluster_size=2M"),
    ("qcow2", "-c compression_type=zstd"), ("qcow2", "-c compression_type=zstd,cluster_size=2M"),
    ("qcow2", "-c extended_l2=on,cluster_size=128k"), ("vmdk", ""), ("vmdk", "subformat=streamOptimized"), ("vdi", ""),
    ("vdi", "static=on"), ("vpc", ""),
    ("vpc", "subformat=fixed"), ("vhdx", ""), ("vhdx", "subformat=fixed"),
)  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with data at its beginning, in its middle and at its end."""
    path = tmp_path_factory.mktemp("raw") / "disk"
    with path.open("wb") as file:
        for start in (0, 4 << 20, SIZE - (1 << 20)):
            file.seek(start)
            for number in range(256):
                file.write(hashlib.sha256(b"%d %d" % (start, number)).digest() * 128)
        file.truncate(SIZE)
    return path


def converted(raw: Path, path: Path, kind: str, options: str) -> Path:
    compressed, options = options.startswith("-c"), options.removeprefix("-c").strip()
    arguments = [*(["-c"] if compressed else []), *(["-o", options] if options else [])]
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", kind, *arguments, str(raw), str(path)], check=True)
    return path


def refused(path: Path, format: ImageFormat) -> bool:
    try:
        with path.open("rb") as file:
            check(file, detect(file))
            check_whole(file, format)
    except Unacceptable:
        return True
    return False


def same_as(raw: Path, path: Path, format: ImageFormat) -> bool | None:
    """Say whether qemu-img reads this disk's content as that of ``raw``; None if it does not read it at all."""
    driver, copy = DRIVERS.get(format, format.value), path.with_suffix(".copy")
    command = ["qemu-img", "convert", "-f", driver, "-O", "raw", str(path), str(copy)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        return None
    data = copy.read_bytes()
    return data[:SIZE] == raw.read_bytes() and not any(data[SIZE:])


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_whole_disk_is_accepted_and_an_incomplete_one_refused(
    raw: Path, tmp_path: Path, kind: str, options: str
) -> None:
    path = converted(raw, tmp_path / "disk", kind, options)
    with path.open("rb") as file:
        format = detect(file)
    assert not refused(path, format) and same_as(raw, path, format)
    size, refusals = path.stat().st_size, 0
    for length in (*(size - cut for cut in CUTS if cut < size), size * 3 // 4, size // 2, size // 10, 600):
        os.truncate(path, length)
        if refused(path, format):
            refusals += 1
        else:
            assert same_as(raw, path, format) is not False, f"{length} of {size} bytes were taken for the whole disk"
    assert refusals >= 4


def test_a_raw_disk_needs_nothing_but_itself() -> None:
    assert bytes_needed(io.BytesIO(b"x"), ImageFormat.RAW) == 0


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_damaged_extent_map_is_read_or_refused_and_never_crashes(
    raw: Path, tmp_path: Path, kind: str, options: str
) -> None:
    data = converted(raw, tmp_path / "disk", kind, options).read_bytes()
    with (tmp_path / "disk").open("rb") as file:
        format = detect(file)
    heads = [at for start in (0, 512, 65536, 192 << 10, 1 << 20, len(data) - 512) for at in range(start, start + 128)]

    @settings(deadline=None, max_examples=20)
    @given(st.lists(st.tuples(st.sampled_from(heads), st.integers(0, 255)), min_size=1, max_size=8))
    def damage(changes: list[tuple[int, int]]) -> None:
        damaged = bytearray(data)
        for at, value in changes:
            if at < len(damaged):
                damaged[at] = value
        try:
            check(io.BytesIO(damaged), format)
            assert bytes_needed(io.BytesIO(damaged), format) >= 0
        except Unacceptable as error:
            assert str(error)

    damage()


def test_a_differencing_vhdx_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", str(path), "16M"], check=True)
    data = bytearray(path.read_bytes())
    entry = data.index(VHDX_PARAMETERS)
    at = data.rindex(b"metadata", 0, entry) + int.from_bytes(data[entry + 16 : entry + 20], "little")
    data[at + 4] |= 2
    with pytest.raises(Unacceptable, match=r"differencing disk \(with a parent\)"):
        check_whole(io.BytesIO(bytes(data)), ImageFormat.VHDX)


def test_more_compressed_clusters_in_the_last_sector_than_fit_there_are_refused_and_not_unpacked() -> None:
    size = 1 << 20
    clusters = CompressedClusters(1 << 16, size, zstd=False)
    entries = [COMPRESSED | 3 << 54 | (size - 300 - number) for number in range(OVERHANGING_MAX + 1)]
    with pytest.raises(Unacceptable, match="its map is damaged: over 512 clusters share its last sector"):
        clusters.bytes_needed(io.BytesIO(bytes(size)), entries)
    assert clusters.bytes_needed(io.BytesIO(bytes(size)), entries[:1] * 1000) > size, "one that is named often is one"


def test_a_compressed_cluster_may_end_with_the_file_inside_its_sector() -> None:
    content = hashlib.sha256(b"cluster").digest() * 2048
    for packed, zstd in ((zlib.compress(content, wbits=-12), False), (zstandard.compress(content), True)):
        file = io.BytesIO(bytes(1 << 16) + packed)
        size, sectors = len(file.getvalue()), (len(packed) - 1) // 512
        entry = COMPRESSED | sectors << 54 | 1 << 16
        assert CompressedClusters(1 << 16, size, zstd).bytes_needed(file, [entry]) == size
        file.truncate(size - 1)
        needed = CompressedClusters(1 << 16, size - 1, zstd).bytes_needed(file, [entry])
        assert needed >= size or not zstd, "zlib's last byte may only end the stream"
        file.truncate(size - 20)
        assert CompressedClusters(1 << 16, size - 20, zstd).bytes_needed(file, [entry]) > size - 20


def test_a_method_of_compression_that_is_not_known_is_refused(tmp_path: Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(tmp_path / "disk"), "1M"], check=True)
    data = bytearray((tmp_path / "disk").read_bytes())
    data[79], data[TYPE_AT] = data[79] | 8, 7
    with pytest.raises(Unacceptable, match=r"a method that is not known \(number 7\)"):
        check_whole(io.BytesIO(bytes(data)), ImageFormat.QCOW2)
