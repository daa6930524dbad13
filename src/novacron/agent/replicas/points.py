"""The points of one replica on the node that keeps it: layers of qcow2, one over the other, and what each round was.

A directory holds the layers of all rounds, lowest first, and a manifest that names the points. A layer counts only
once the manifest names its point, so a round is there as a whole or not at all. A point is the disk of the image with
all layers up to it. When there are more points than are to be kept, the two lowest layers become one: the manifest
first stops naming the point between them, and what was begun is done again after a kill.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from novacron import private_file
from novacron.disk.errors import Unacceptable
from novacron.disk.files import allocated, make_durable
from novacron.model.errors import MALFORMED
from novacron.model.firmware_state import FirmwareState
from novacron.model.limits import SHARED_LAYERS_MAX
from novacron.model.replica import AGE_S_MAX
from novacron.model.waiting import WaitCode
from novacron.wire import messages as wire

MANIFEST = "points.json"
RECEIVING = "receiving"
"""Where the layers of a round are until all of it is there."""
ADOPTED = ".adopted"
"""How what a VM left is called while it is removed, because it is in the replica now."""
LAYER = re.compile(r"^layer-([0-9]{16})-([0-9]{2})\.qcow2\Z")
HEAD = struct.Struct(">4sIQIIQIIQQIIQQ")
MAGIC, VERSION = b"QFI\xfb", 3
NOT_CLOSED = 1
"""The feature of a file that was not closed: QEMU puts it in order."""


class Point(msgspec.Struct, frozen=True):
    """A point as the manifest has it."""

    number: int
    round: str
    """The id that its sender knows it by."""
    at_s: float
    """When, in seconds of this host's clock."""
    sent_bytes: int
    quiesced: bool
    state: FirmwareState
    """What firmware and TPM remembered."""


class PointList(msgspec.Struct, frozen=True):
    """All points, from the oldest to the newest."""

    vm: str
    points: tuple[Point, ...] = ()
    base: int = 0
    """The last point that brought all of the disk: layers of earlier rounds are of no use."""
    former: str = ""
    """A name for what is below the first point, if that is not its own: what the VM left here when it went on
    elsewhere. It is no point: nobody may go back to it."""
    former_round: int = 0
    """The number of the layers that the VM left, while the points are still those from before: the first round over
    them takes the place of all. 0: the points, if there are any, lie over what the VM left."""


class Layer(NamedTuple):
    """One layer, by the round that brought it and its place in it, from the lowest up."""

    round: int
    place: int
    path: Path


class Merge(NamedTuple):
    """Two layers that are to become one."""

    below: Sequence[Path]
    """The layers below them, from the lowest up."""
    lower: Layer
    upper: Layer


def layer_name(round: int, place: int) -> str:
    return f"layer-{round:016}-{place:02}.qcow2"


def check_layer(path: Path, disk_bytes: int) -> None:
    """See that a file that another node made is a layer of a disk of at most this size, which leads to no other file
    (QEMU's docs/interop/qcow2.txt). Raises Unacceptable, OSError."""
    with path.open("rb") as file:
        head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        raise Unacceptable("a layer of the replica is not a qcow2 file", WaitCode.FILE_REFUSED)
    magic, version, _, _, _, size, encrypted, _, _, _, _, _, _, features = HEAD.unpack(head)
    if magic != MAGIC or version != VERSION or encrypted or features & ~NOT_CLOSED:
        raise Unacceptable("a layer of the replica does not have QEMU's format", WaitCode.FILE_REFUSED)
    if size > disk_bytes:
        raise Unacceptable(
            f"a layer of the replica has {size} bytes, the VM's disk {disk_bytes}", WaitCode.FILE_REFUSED
        )


class ReplicaPoints:
    """The points of one replica. All methods but the properties touch the disk: they are called in a thread, one at a
    time, and raise OSError."""

    def __init__(self, directory: Path, vm: str) -> None:
        self.directory, self.vm = directory, vm
        self._manifest = PointList(vm)

    def open(self) -> None:
        """Read what is there, and remove what no round ended. Raises Unacceptable for what is damaged."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.rmtree(self.directory / RECEIVING, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            try:
                self._manifest = msgspec.json.decode((self.directory / MANIFEST).read_bytes(), type=PointList)
            except MALFORMED as error:
                raise Unacceptable(f"its list of points is damaged: {error}", WaitCode.FILE_LOST) from error
        if self._manifest.vm != self.vm:
            raise Unacceptable("it is a replica of another VM", WaitCode.STEP_FAILED)
        self._remove_useless()

    @property
    def points(self) -> Sequence[Point]:
        return self._manifest.points

    @property
    def newest(self) -> int:
        """Return the highest number that a point has, or what the VM left; 0 for none."""
        return self._manifest.former_round or self._newest_point

    @property
    def newest_round(self) -> str:
        """Return over what the next round lies; empty: there is nothing."""
        if self._manifest.former_round or not self._manifest.points:
            return self._manifest.former
        return self._manifest.points[-1].round

    def stands(self) -> tuple[wire.PointStands, ...]:
        """Return the points as the server is told of them."""
        now = time.time()
        return tuple(
            wire.PointStands(point.number, min(max(0.0, now - point.at_s), AGE_S_MAX), point.sent_bytes, point.quiesced)
            for point in self._manifest.points
        )

    def used_bytes(self) -> int:
        return allocated(layer.path for layer in (*self._layers(), *self._former_layers()))

    def receiving(self) -> Path:
        """Return an empty directory for the layers of a round."""
        self._remove_useless()
        path = self.directory / RECEIVING
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        return path

    def add(self, point: Point, *, whole: bool) -> None:
        """The layers of a round are in the directory of ``receiving``, durably, by their places: it is a point from
        now on. If it is ``whole``, what was there before is of no use any more."""
        arrived = sorted((self.directory / RECEIVING).iterdir(), key=lambda path: int(path.name))
        for place, path in enumerate(arrived):
            path.rename(self.directory / layer_name(point.number, place))
        (self.directory / RECEIVING).rmdir()
        make_durable(self.directory)
        if whole:
            self._write(PointList(self.vm, (point,), point.number))
        elif self._manifest.former_round:
            self._write(PointList(self.vm, (point,), self._manifest.former_round, self._manifest.former))
        else:
            self._write(msgspec.structs.replace(self._manifest, points=(*self._manifest.points, point)))
        self._remove_useless()

    def adopt(self, former: Path, disk_bytes: int, name: str) -> None:
        """Take what a VM has left here of its disk, from the lowest layer up: the next round lies over it. The points
        that are here stay until that round is a point. May be done again after a kill. Raises Unacceptable, OSError."""
        left = sorted(former.iterdir(), key=lambda path: int(path.name))
        if len(left) > SHARED_LAYERS_MAX // 2:
            raise Unacceptable(f"it has {len(left)} layers, too many to add points", WaitCode.STEP_FAILED)
        for path in left:
            check_layer(path, disk_bytes)
        self._remove_useless()
        number = self.newest + 1
        for place, path in enumerate(left):
            target = self.directory / layer_name(number, place)
            os.link(path, target)
            os.chown(target, os.geteuid(), os.getegid())
            target.chmod(0o600)
            with target.open("rb") as file:
                os.fsync(file.fileno())  # QEMU was killed: the last of it may be in memory alone
        make_durable(self.directory)
        if self._manifest.points:
            self._write(msgspec.structs.replace(self._manifest, former=name, former_round=number))
        else:
            self._write(PointList(self.vm, (), number, name))
        adopted = former.with_suffix(ADOPTED)
        shutil.rmtree(adopted, ignore_errors=True)
        former.rename(adopted)  # so that a kill leaves no part of it to be adopted
        shutil.rmtree(adopted, ignore_errors=True)
        make_durable(former.parent)
        self._remove_useless()

    def _remove_useless(self) -> None:
        """Remove layers of rounds that did not become points, and those below the last whole one."""
        for layer in self._all_layers():
            if not self._is_of_points(layer) and layer.round != self._manifest.former_round:
                layer.path.unlink()

    def to_merge(self, points_kept: int) -> Merge | None:
        """Return two layers that are to become one, with those below them; the points between are none any more.

        They are the lowest ones, or, where VMs have those as their own, the lowest ones above."""
        while len(self._manifest.points) > points_kept:
            self._write(msgspec.structs.replace(self._manifest, points=self._manifest.points[1:]))
        layers = self._layers()
        first = next((number for number, layer in enumerate(layers) if layer.path.stat().st_nlink == 1), len(layers))
        if not self._manifest.points or len(layers) < first + 2:
            return None
        lower, upper = layers[first : first + 2]
        if upper.round > self._manifest.points[0].number or upper.path.stat().st_nlink > 1:
            return None
        return Merge([layer.path for layer in layers[:first]], lower, upper)

    def merged(self, merge: Merge) -> None:
        """All of the upper layer is in the lower one, durably, which now takes its place."""
        merge.lower.path.rename(merge.upper.path)
        make_durable(self.directory)

    @property
    def layer_count(self) -> int:
        """Return how many layers there are over which the next round lies."""
        return len(self.newest_layers())

    def newest_layers(self) -> list[Path]:
        """Return the layers over which the next round lies, from the lowest up."""
        return [layer.path for layer in self._former_layers() or self._layers()]

    def layers_of(self, number: int) -> list[Path] | None:
        """Return the layers of a point, from the lowest up; None: it is not there."""
        if number not in {point.number for point in self._manifest.points}:
            return None
        return [layer.path for layer in self._layers() if layer.round <= number]

    def point(self, number: int) -> Point | None:
        return next((point for point in self._manifest.points if point.number == number), None)

    def remove(self) -> None:
        """Remove all of it."""
        if self.directory.exists():
            shutil.rmtree(self.directory)

    def _layers(self) -> list[Layer]:
        """Return the layers of which points consist, from the lowest up."""
        return [layer for layer in self._all_layers() if self._is_of_points(layer)]

    def _former_layers(self) -> list[Layer]:
        """Return the layers that the VM left, while no point lies over them."""
        number = self._manifest.former_round
        return [layer for layer in self._all_layers() if layer.round == number] if number else []

    @property
    def _newest_point(self) -> int:
        return self._manifest.points[-1].number if self._manifest.points else self._manifest.base

    def _is_of_points(self, layer: Layer) -> bool:
        return self._manifest.base <= layer.round <= self._newest_point

    def _all_layers(self) -> list[Layer]:
        layers = [
            Layer(int(match[1]), int(match[2]), path)
            for path in self.directory.iterdir()
            if (match := LAYER.match(path.name))
        ]
        return sorted(layers)

    def _write(self, manifest: PointList) -> None:
        private_file.write(self.directory / MANIFEST, msgspec.json.encode(manifest))
        make_durable(self.directory)
        self._manifest = manifest
