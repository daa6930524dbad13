"""Messages to bytes and back. What can't be decoded names its kind, so that it can be skipped, counted and logged."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from novacron.model.errors import MALFORMED
from novacron.wire.messages import Desired, FromAgent, FromServer, Message, Statement, Volumes, VolumeWanted

KIND_LENGTH_MAX = 40

encoder = msgspec.msgpack.Encoder()
_from_agent: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(FromAgent)
_from_server: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(FromServer)

T = TypeVar("T")


class Undecodable(ValueError):
    """A message, or a part of one, that this version does not understand."""

    def __init__(self, kind: str, error: Exception) -> None:
        super().__init__(f"{kind}: {error}")
        self.kind = kind
        """Its type, as far as it can be told."""


class _Tagged(msgspec.Struct):
    type: str


class _Parts(msgspec.Struct):
    """``Desired`` and ``Volumes`` with their parts not decoded yet."""

    type: str
    statements: tuple[msgspec.Raw, ...] = ()
    volumes: tuple[msgspec.Raw, ...] = ()
    whole: bool = True
    trace: str = ""


def encode(message: msgspec.Struct) -> bytes:
    """Return the bytes of a message, or of a part of one."""
    return encoder.encode(message)


def decode_from_agent(raw: bytes) -> Message:
    """Return a message of an agent. Raises Undecodable."""
    try:
        return _from_agent.decode(raw)
    except MALFORMED as error:
        raise Undecodable(_kind(raw), error) from error


def decode_from_server(raw: bytes) -> tuple[Message, list[Undecodable]]:
    """Return a message of the server, and what of it had to be left out. Raises Undecodable.

    Of statements and volumes, those that can't be decoded are left out: the node leaves what it is not told of as it
    is. Of networks, imports and exports none may be left out, for the node removes those that are not named.
    """
    try:
        return _from_server.decode(raw), []
    except MALFORMED as error:
        kind = _kind(raw)
        if kind not in ("desired", "volumes"):
            raise Undecodable(kind, error) from error
        try:
            parts = msgspec.msgpack.decode(raw, type=_Parts)
        except MALFORMED:
            raise Undecodable(kind, error) from error
    left_out: list[Undecodable] = []
    if kind == "desired":
        statements = _decodable(kind, parts.statements, Statement, left_out)
        return Desired(statements, whole=parts.whole, trace=parts.trace), left_out
    return Volumes(_decodable(kind, parts.volumes, VolumeWanted, left_out), trace=parts.trace), left_out


def _decodable(kind: str, raws: tuple[msgspec.Raw, ...], type: type[T], left_out: list[Undecodable]) -> tuple[T, ...]:
    decoded: list[T] = []
    for raw in raws:
        try:
            decoded.append(msgspec.msgpack.decode(raw, type=type))
        except MALFORMED as error:
            left_out.append(Undecodable(f"part of {kind}", error))
    return tuple(decoded)


def _kind(raw: bytes) -> str:
    try:
        return msgspec.msgpack.decode(raw, type=_Tagged).type[:KIND_LENGTH_MAX]
    except MALFORMED:
        return "garbage"
