"""Disks of layers, read and written block by block by ourselves: QEMU must find the same in them."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from novacron.disk import difference
from novacron.disk.chain import BLOCK_BYTES, Chain
from novacron.disk.errors import Unacceptable
from tests.chance import fixed_seed
from tests.unit.test_replica_points import content, image, layer

SIZE = 4 << 20
BLOCKS = SIZE // BLOCK_BYTES
__all__ = ["image"]


def disk_of(chain: Chain) -> bytes:
    return b"".join(chain.read(block) for block in range(-(-chain.size_bytes // BLOCK_BYTES)))[: chain.size_bytes]


def test_a_disk_of_layers_is_what_qemu_finds(image: Path, tmp_path: Path) -> None:
    first = layer(tmp_path / "1", "-P 1 0 64k", "-P 1 1M 128k", "-P 1 3000k 5k")
    second = layer(tmp_path / "2", "-z 64k 64k", "-P 2 1088k 4k", size=2 * SIZE)
    with Chain(image, [first, second]) as chain:
        assert disk_of(chain) == content(image, [first, second], tmp_path / "raw")
        # A write of less than a block to a layer without a backing file fills the rest with zeros.
        assert list(chain.written()) == [0, 1, 16, 17, 46]


def test_below_a_layer_that_was_smaller_nothing_shows_through(image: Path, tmp_path: Path) -> None:
    small = layer(tmp_path / "1", "-P 1 0 64k", size=SIZE // 2)
    grown = layer(tmp_path / "2", "-P 2 64k 64k", size=SIZE)
    with Chain(image, [small, grown]) as chain:
        assert disk_of(chain) == content(image, [small, grown], tmp_path / "raw")


@pytest.mark.parametrize("size_bytes", [SIZE, SIZE + 512, 3 << 30])
def test_a_layer_with_some_blocks_is_one_that_qemu_accepts(image: Path, tmp_path: Path, size_bytes: int) -> None:
    chance = random.Random(fixed_seed())
    last = size_bytes // BLOCK_BYTES - 1
    blocks = sorted({*chance.sample(range(BLOCKS), 20), last})
    data = {block: chance.randbytes(BLOCK_BYTES) for block in blocks}
    data[blocks[3]] = bytes(BLOCK_BYTES)
    made = tmp_path / "made"
    difference.write(made, size_bytes, blocks, data.__getitem__)
    checked = subprocess.run(["qemu-img", "check", str(made)], capture_output=True, text=True)
    assert checked.returncode == 0 and "No errors" in checked.stdout, checked.stdout + checked.stderr
    with Chain(image, [made]) as chain:
        assert list(chain.written()) == blocks and chain.size_bytes == size_bytes
        for block in {*range(BLOCKS), last}:
            assert chain.read(block) == data.get(block, b"i" * BLOCK_BYTES if block < BLOCKS else bytes(BLOCK_BYTES))
    if size_bytes <= SIZE + 512:
        found = content(image, [made], tmp_path / "raw")
        assert found[:SIZE] == b"".join(data.get(block, b"i" * BLOCK_BYTES) for block in range(BLOCKS))
    with pytest.raises(FileExistsError):
        difference.write(made, size_bytes, (), data.__getitem__)


def test_an_empty_difference_is_a_layer(image: Path, tmp_path: Path) -> None:
    difference.write(tmp_path / "made", SIZE, (), lambda _: b"")
    assert content(image, [tmp_path / "made"], tmp_path / "raw") == image.read_bytes()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("-o", "cluster_size=4k"), "clusters of 4096 bytes"),
        (("-o", "compat=0.10"), "not a plain layer"),
        (("-o", "extended_l2=on"), "not a plain layer"),
    ],
)
def test_other_layers_than_those_of_vms_are_refused(
    image: Path, tmp_path: Path, options: tuple[str, ...], why: str
) -> None:  # fmt: skip
    path = tmp_path / "other"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), str(SIZE)], check=True)
    with pytest.raises(Unacceptable, match=why):
        Chain(image, [path])


def test_a_layer_that_is_cut_off_or_compressed_is_refused(image: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", str(image), str(packed)], check=True)
    with Chain(image, [packed]) as chain, pytest.raises(Unacceptable, match="compressed"):
        chain.read(0)
    cut = layer(tmp_path / "cut", "-P 1 0 64k")
    with cut.open("r+b") as file:
        file.truncate(3 * BLOCK_BYTES)
    with pytest.raises(Unacceptable, match="cut off"), Chain(image, [cut]) as chain:
        chain.read(0)
