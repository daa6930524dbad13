"""Frames: what goes over one connection. docs/dwcp.md, "Frames"."""

from __future__ import annotations

import asyncio
import struct
import zlib
from enum import IntEnum

import msgspec

VERSION = 1
HEADER = struct.Struct("!BBHIQI")
PAYLOAD_BYTES_MAX = 4 * 1024 * 1024
CONTROL_BYTES_MAX = 64 * 1024


class FrameType(IntEnum):
    """HELLO opens a connection, WELCOME accepts it, DATA carries, END closes the stream, DONE confirms all of it,
    ERROR ends the session with a reason."""

    HELLO = 1
    WELCOME = 2
    DATA = 3
    END = 4
    DONE = 5
    ERROR = 6


class Frame(msgspec.Struct, frozen=True):
    """One frame. ``sequence`` counts DATA and END frames of a session from 0."""

    type: FrameType
    sequence: int = 0
    payload: bytes = b""


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Payload of HELLO: which session this connection joins, and as which of how many."""

    version: int
    session: str
    stream: int
    streams: int
    codec: str


class End(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Payload of END: how many raw bytes the stream had, and their CRC-32."""

    raw_bytes: int
    crc32: int


class ProtocolError(Exception):
    """The peer sent what the protocol does not allow: says what, and what was expected."""


def encode(frame: Frame) -> tuple[bytes, bytes]:
    """Return header and payload, ready to be written one after the other."""
    header = HEADER.pack(VERSION, frame.type, 0, len(frame.payload), frame.sequence, zlib.crc32(frame.payload))
    return header, frame.payload


def decode_header(raw: bytes) -> tuple[FrameType, int, int, int]:
    """Return ``(type, payload length, sequence, crc)``. Raises ProtocolError."""
    version, kind, reserved, length, sequence, crc = HEADER.unpack(raw)
    if version != VERSION or reserved != 0:
        raise ProtocolError(f"frame of version {version}; this end speaks {VERSION}")
    try:
        type_ = FrameType(kind)
    except ValueError:
        raise ProtocolError(f"unknown frame type {kind}") from None
    limit = PAYLOAD_BYTES_MAX if type_ is FrameType.DATA else CONTROL_BYTES_MAX
    if length > limit:
        raise ProtocolError(f"{type_.name} frame of {length} bytes, at most {limit} are allowed")
    return type_, length, sequence, crc


async def read(reader: asyncio.StreamReader) -> Frame:
    """Read one frame. Raises ProtocolError, or asyncio.IncompleteReadError at the end of the connection."""
    type_, length, sequence, crc = decode_header(await reader.readexactly(HEADER.size))
    payload = await reader.readexactly(length) if length else b""
    if zlib.crc32(payload) != crc:
        raise ProtocolError(f"{type_.name} frame {sequence} is damaged: its checksum does not match")
    return Frame(type_, sequence, payload)
