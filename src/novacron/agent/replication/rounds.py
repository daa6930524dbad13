"""What a round of a replica is on its way: the head, then the layers of the VM's disk, as volumes of a DWCP session.

The names of the volumes say which round it is, and over which one its layer lies, so that a receiver that has another
one refuses it before any data is sent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from novacron.disk.stream import StreamError, VolumeInfo
from novacron.model.errors import MALFORMED
from novacron.model.firmware_state import FirmwareState
from novacron.model.limits import SHARED_LAYERS_MAX
from novacron.wire.replicas import Age, Bytes

HEAD = "head"
HEAD_BYTES_MAX = 4 << 20
ROUND = re.compile(r"^([0-9a-f]{16}) over ([0-9a-f]{16}|nothing)\Z")
NOTHING = "nothing"


class RoundHead(msgspec.Struct, frozen=True):
    """What a round is, beside its layers."""

    age_s: Age
    """How long before it was sent the moment was of which it is."""
    changed_bytes: Bytes
    quiesced: bool
    state: FirmwareState


class RoundName(NamedTuple):
    """Which round it is, and over which one it lies; empty: over the image's disk alone."""

    round: str
    since: str


class Compared(msgspec.Struct, frozen=True):
    """How the newest disk of a replica differs from its sender's: the answer to a comparison.

    ``since``: the round that brought it; empty: there is none. ``differ``: runs of blocks, packed.
    """

    since: str = ""
    disk_bytes: int = 0
    differ: bytes = b""
    lacks: str = ""
    """Why there is no disk to compare with."""


def comparison_of(replica: str, sender: str) -> str:
    """Return the name of the session that asks how a replica differs."""
    return f"{replica}.{sender}.compared"


def session_of(replica: str, sender: str) -> str:
    """Return the name of the session that carries rounds of a replica from a node."""
    return f"{replica}.{sender}"


def below(name: RoundName) -> str:
    """Return what the volumes of a round say that they lie over."""
    return f"{name.round} over {name.since or NOTHING}"


def name_of(volumes: Sequence[VolumeInfo], disk_bytes: int) -> RoundName:
    """Return which round volumes are of. Raises StreamError unless they are a round of a disk of at most this size."""
    names = [volume.name for volume in volumes]
    if names != [*(f"layer-{place}" for place in range(len(names) - 1)), HEAD] or len(names) < 2:
        raise StreamError("the stream is not a replica's round")
    if len(names) > SHARED_LAYERS_MAX + 2 or volumes[-1].size_bytes > HEAD_BYTES_MAX:
        raise StreamError("the stream's round has too many layers, or its head is too large")
    most = disk_bytes + disk_bytes // 8 + (4 << 20)
    for volume in volumes[:-1]:
        if volume.size_bytes > most:
            raise StreamError(f"{volume.name} is too large: it has {volume.size_bytes} bytes")
    if len({volume.below for volume in volumes}) != 1 or (match := ROUND.match(volumes[0].below)) is None:
        raise StreamError("the stream does not say which round it is")
    return RoundName(match[1], "" if match[2] == NOTHING else match[2])


def head_of(data: bytes) -> RoundHead:
    """Return a round's head. Raises StreamError."""
    try:
        return msgspec.msgpack.decode(data, type=RoundHead)
    except MALFORMED as error:
        raise StreamError(f"the head of a round can't be read: {error}") from error
