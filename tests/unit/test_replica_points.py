"""The points of a replica on its node: whole or not there, through kills at any step, and never read as what they are
not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from novacron.agent.replicas.points import LAYER, MANIFEST, Point, ReplicaPoints, check_layer, layer_name
from novacron.agent.replication import rounds
from novacron.agent.replication.rounds import RoundHead, RoundName
from novacron.disk import layers, qemu_img
from novacron.disk.convert import ToolUser
from novacron.disk.errors import Unacceptable
from novacron.disk.stream import StreamError, VolumeInfo
from novacron.model.firmware_state import FirmwareState

SIZE = 4 << 20
NOBODY = ToolUser(qemu_img.unchanged, None)


def layer(path: Path, *writes: str, size: int = SIZE) -> Path:
    """Make a layer with what qemu-io writes into it."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)], check=True)
    for write in writes:
        subprocess.run(["qemu-io", "-c", f"write {write}", str(path)], check=True, capture_output=True)
    return path


def arrive(points: ReplicaPoints, number: int, *writes: str, whole: bool = False) -> None:
    """Let a round of one layer become a point."""
    layer(points.receiving() / "0", *writes)
    points.add(Point(number, f"{number:016x}", float(number), 1, False, FirmwareState()), whole=whole)


def content(image: Path, chain: list[Path], to: Path) -> bytes:
    """Return the disk that layers over an image make up."""
    node = f'{{"driver":"raw","file":{{"driver":"file","filename":"{image}"}}}}'
    for path in chain:
        file = f'{{"driver":"file","filename":"{path}"}}'
        node = f'{{"driver":"qcow2","file":{file},"backing":{node}}}'
    subprocess.run(["qemu-img", "convert", "-O", "raw", f"json:{node}", str(to)], check=True)
    return to.read_bytes()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"i" * SIZE)
    return path


@pytest.fixture
def points(tmp_path: Path) -> ReplicaPoints:
    opened = ReplicaPoints(tmp_path / "replica", "vm-a")
    opened.open()
    arrive(opened, 1, "-P 1 0 64k", "-P 1 1M 64k", whole=True)
    arrive(opened, 2, "-z 64k 64k", "-P 2 1M 64k")
    arrive(opened, 3, "-P 3 2M 64k")
    return opened


def reopened(points: ReplicaPoints) -> ReplicaPoints:
    """Return what an agent finds that is started again."""
    again = ReplicaPoints(points.directory, "vm-a")
    again.open()
    return again


def numbers(points: ReplicaPoints) -> list[int]:
    return [point.number for point in points.points]


async def test_merged_points_are_what_they_were(points: ReplicaPoints, image: Path, tmp_path: Path) -> None:
    def disk(number: int) -> bytes:
        chain = points.layers_of(number)
        assert chain is not None
        return content(image, chain, tmp_path / "raw")

    before = {number: disk(number) for number in (2, 3)}
    assert before[3][64 << 10] == 0 and before[3][:1] == b"\x01" and before[3][-1:] == b"i"
    while (pair := points.to_merge(2)) is not None:
        await layers.merge([image, *pair.below], pair.lower.path, pair.upper.path, 0, NOBODY)
        points.merged(pair)
    assert numbers(points) == [2, 3] and points.layers_of(1) is None
    assert {number: disk(number) for number in (2, 3)} == before
    while (pair := points.to_merge(1)) is not None:
        await layers.merge([image, *pair.below], pair.lower.path, pair.upper.path, 0, NOBODY)
        points.merged(pair)
    assert numbers(points) == [3] and disk(3) == before[3]
    assert len(list(points.directory.iterdir())) == 2, "a layer and the manifest"


@pytest.mark.parametrize("merged", [False, True])
async def test_a_merge_that_a_kill_cuts_short_is_done_again(
    points: ReplicaPoints, image: Path, tmp_path: Path, merged: bool
) -> None:
    chain = points.layers_of(3)
    assert chain is not None
    before = content(image, chain, tmp_path / "raw")
    pair = points.to_merge(2)
    assert pair is not None
    if merged:
        await layers.merge([image, *pair.below], pair.lower.path, pair.upper.path, 0, NOBODY)
    again = reopened(points)
    assert numbers(again) == [2, 3], "what is being written into is no point any more"
    pair = again.to_merge(2)
    assert pair is not None
    await layers.merge([image, *pair.below], pair.lower.path, pair.upper.path, 0, NOBODY)
    again.merged(pair)
    chain = again.layers_of(3)
    assert chain is not None and len(chain) == 2 and content(image, chain, tmp_path / "raw") == before


def test_a_round_that_a_kill_cuts_short_leaves_nothing(points: ReplicaPoints) -> None:
    layer(points.receiving() / "0", "-P 9 0 64k")
    shutil.copy(points.directory / layer_name(3, 0), points.directory / layer_name(4, 0))  # renamed, and not yet named
    again = reopened(points)
    assert numbers(again) == [1, 2, 3] and again.newest == 3
    assert sorted(p.name for p in again.directory.iterdir() if LAYER.match(p.name)) == [
        layer_name(number, 0) for number in (1, 2, 3)
    ]
    assert not (again.directory / "receiving").exists()


def test_a_whole_round_takes_the_place_of_all_points_only_once_it_is_there(points: ReplicaPoints) -> None:
    receiving = points.receiving()
    layer(receiving / "0", "-P 7 0 64k")
    layer(receiving / "1", "-P 8 64k 64k")
    assert numbers(reopened(points)) == [1, 2, 3]
    layer(points.receiving() / "0", "-P 7 0 64k")
    layer(points.directory / "receiving" / "1", "-P 8 64k 64k")
    points.add(Point(4, "4" * 16, 4.0, 1, False, FirmwareState()), whole=True)
    chain = points.layers_of(4)
    assert numbers(points) == [4] and chain is not None
    assert [path.name for path in chain] == [layer_name(4, 0), layer_name(4, 1)]


def test_layers_that_a_vm_has_are_not_written_into(points: ReplicaPoints, tmp_path: Path) -> None:
    chain = points.layers_of(2)
    assert chain is not None
    (tmp_path / "shared-0.qcow2").hardlink_to(chain[0])
    assert points.to_merge(2) is None and numbers(points) == [2, 3]
    (tmp_path / "shared-0.qcow2").unlink()
    assert points.to_merge(1) is not None


def test_a_damaged_list_of_points_and_another_vms_are_refused(points: ReplicaPoints) -> None:
    with pytest.raises(Unacceptable, match="another VM"):
        ReplicaPoints(points.directory, "vm-b").open()
    (points.directory / MANIFEST).write_bytes(b"{")
    with pytest.raises(Unacceptable, match="damaged"):
        reopened(points)
    assert len(list(points.directory.iterdir())) == 4, "and nothing is removed"


def test_files_that_lead_elsewhere_or_are_too_large_are_no_layers(tmp_path: Path) -> None:
    good = layer(tmp_path / "good", "-P 1 0 64k")
    check_layer(good, SIZE)
    with pytest.raises(Unacceptable, match="the VM's disk"):
        check_layer(good, SIZE - 1)
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/data,data_file_raw=on",
         str(tmp_path / "led"), str(SIZE)], check=True,
    )  # fmt: skip
    for bad in (tmp_path / "led", tmp_path / "data"):
        with pytest.raises(Unacceptable):
            check_layer(bad, SIZE)
    (tmp_path / "short").write_bytes(good.read_bytes()[:50])
    with pytest.raises(Unacceptable, match="not a qcow2"):
        check_layer(tmp_path / "short", SIZE)


NAME = RoundName("a" * 16, "b" * 16)
BELOW = rounds.below(NAME)
GOOD = [VolumeInfo("layer-0", 1 << 20, BELOW), VolumeInfo("head", 100, BELOW)]


def test_a_rounds_volumes_say_which_it_is() -> None:
    assert rounds.name_of(GOOD, SIZE) == NAME
    whole = rounds.below(RoundName("a" * 16, ""))
    assert rounds.name_of([VolumeInfo("layer-0", 1, whole), VolumeInfo("head", 1, whole)], SIZE).since == ""
    head = RoundHead(1.5, 7, True, FirmwareState())
    assert rounds.head_of(msgspec.msgpack.encode(head)) == head


@pytest.mark.parametrize("volumes", [
    [], GOOD[:1], GOOD[::-1], [VolumeInfo("../disk", 1, BELOW), GOOD[1]], [VolumeInfo("layer-1", 1, BELOW), GOOD[1]],
    [VolumeInfo("layer-0", 1 << 40, BELOW), GOOD[1]], [GOOD[0], VolumeInfo("head", 1 << 30, BELOW)],
    [VolumeInfo("layer-0", 1, "x"), VolumeInfo("head", 1, "x")], [GOOD[0], VolumeInfo("head", 1, "")],
    [*(VolumeInfo(f"layer-{n}", 1, BELOW) for n in range(60)), GOOD[1]],
])  # fmt: skip
def test_what_is_no_round_is_refused_before_any_data(volumes: list[VolumeInfo]) -> None:
    with pytest.raises(StreamError):
        rounds.name_of(volumes, SIZE)


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xc1", msgspec.msgpack.encode({"age_s": "x"})])
def test_a_head_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(StreamError):
        rounds.head_of(data)


def test_layers_above_those_of_a_vm_are_merged_on(points: ReplicaPoints, tmp_path: Path) -> None:
    chain = points.layers_of(2)
    assert chain is not None
    for number, path in enumerate(chain):
        (tmp_path / f"shared-{number}.qcow2").hardlink_to(path)
    arrive(points, 4, "-P 4 0 64k")
    merge = points.to_merge(1)
    assert merge is not None and [path.name for path in merge.below] == [layer_name(n, 0) for n in (1, 2)]
    assert (merge.lower.round, merge.upper.round) == (3, 4)


def test_what_a_kill_left_below_a_whole_round_does_not_show_through(points: ReplicaPoints) -> None:
    old = {path.name: path.read_bytes() for path in points.directory.iterdir() if LAYER.match(path.name)}
    arrive(points, 4, "-P 7 0 64k", whole=True)
    for name, data in old.items():
        (points.directory / name).write_bytes(data)  # as if the agent was killed before it had removed them
    again = reopened(points)
    chain = again.layers_of(4)
    assert chain is not None and [path.name for path in chain] == [layer_name(4, 0)]
    assert again.layer_count == 1 and not {path.name for path in again.directory.iterdir()} & old.keys()


def test_layers_of_a_round_whose_point_could_not_be_noted_go_before_the_next(points: ReplicaPoints) -> None:
    for place in range(3):
        layer(points.directory / layer_name(4, place), "-P 9 0 64k")
    arrive(points, 4, "-P 5 0 64k")
    chain = points.layers_of(4)
    assert chain is not None and [path.name for path in chain][-1] == layer_name(4, 0) and len(chain) == 4
