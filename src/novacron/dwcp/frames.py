"""Frames: what goes over one connection. docs/dwcp.md, "Frames"."""

from __future__ import annotations

import asyncio
import struct
import zlib
from enum import IntEnum
from typing import Annotated

import msgspec

VERSION = 3
HEADER = struct.Struct("!BBHIQI")
CHECKED = HEADER.size - 4
PAYLOAD_BYTES_MAX = 64 * 1024
MISSING_MAX = 1024
"""Pages that one MISSING frame may ask for: the answer is 4 MiB."""
ERROR_TEXT_BYTES_MAX = 1000
MORE = 1
"""Flag of a DATA frame: its piece goes on in the next one."""


class FrameType(IntEnum):
    """HELLO opens or resumes a session on a connection, WELCOME accepts it and says what the receiver holds, BASE tells
    digests of pages that it has. DATA carries, END closes the stream, ACK says what was taken, DONE that it was all.
    MISSING asks for pages that a base does not hold any more, REPAIR brings them. PING asks for an ACK. ERROR ends the
    session with a reason. BACK carries bytes the other way, BACK_TAKEN says what of them was taken. VITALS belongs to
    no session: it asks the listening node how it is, and the answer says so."""

    HELLO = 1
    WELCOME = 2
    DATA = 3
    END = 4
    DONE = 5
    ERROR = 6
    BASE = 7
    ACK = 8
    MISSING = 9
    REPAIR = 10
    PING = 11
    BACK = 12
    BACK_TAKEN = 13
    VITALS = 14


class ErrorCode(IntEnum):
    """Why a session ends: the sequence field of an ERROR frame. docs/dwcp.md, "Errors".

    Decisions are made by the code, never by the text. UNSPECIFIED is what a peer says that knows no codes, and what a
    code that this end does not know is taken for.
    """

    UNSPECIFIED = 0
    PROTOCOL = 1
    NOT_EXPECTED = 2
    REPLACED = 3
    CANCELLED = 4
    TIMED_OUT = 5
    LOCAL_FAILURE = 6
    SHUTTING_DOWN = 7
    TOO_MANY_CONNECTIONS = 8
    NOTHING_BELOW = 9
    """The receiver lacks what the stream's volumes lie over."""

    @classmethod
    def _missing_(cls, value: object) -> ErrorCode | None:
        return cls.UNSPECIFIED if isinstance(value, int) else None


Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class Frame(msgspec.Struct, frozen=True):
    """One frame. ``sequence`` counts DATA and END frames of a session from 0, BACK frames by themselves; in ACK and
    BACK_TAKEN it is the first not yet taken."""

    type: FrameType
    sequence: int = 0
    payload: bytes = b""
    flags: int = 0


class SessionHello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Payload of HELLO. ``instance`` is random, made once by the sender: another one can't go on with its session.
    ``bases`` names what the sender holds itself, so that the receiver need not tell its digests."""

    version: int
    session: str
    instance: bytes
    key_check: bytes
    bases: tuple[str, ...] = ()


class BaseInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Pages that the receiver has. ``announced``: how many digests BASE frames bring; 0 if the sender has them."""

    kind: str
    name: str
    count: Count
    announced: Count


class Welcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Payload of WELCOME: the first frame that was not taken yet, the later ones that are held all the same, the bases,
    and how many slots its ring has (0: none, a session then has no references to its own pages)."""

    next: Count
    held: tuple[Count, ...]
    bases: tuple[BaseInfo, ...]
    slots: Count


class End(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Payload of END: how many bytes and pieces the stream had, and the CRC-32 of all its bytes."""

    raw_bytes: int
    pieces: int
    crc32: int


class MissingPages(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Payload of MISSING: the piece, counted from 0, and which of the pages that it takes from bases."""

    piece: Count
    ordinals: Annotated[tuple[Count, ...], msgspec.Meta(max_length=MISSING_MAX)]


class RepairedPages(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Payload of REPAIR: some of what was missing."""

    piece: Count
    ordinals: tuple[Count, ...]
    pages: bytes


class ProtocolError(Exception):
    """The peer sent what the protocol does not allow, or the session can't go on: says what was found and what was
    expected. ``code`` is sent to the peer."""

    def __init__(self, text: str, code: ErrorCode = ErrorCode.PROTOCOL) -> None:
        super().__init__(text)
        self.code = code


def error_frame(text: str, code: ErrorCode) -> Frame:
    """Return the ERROR frame that ends a session; a long text is cut."""
    return Frame(FrameType.ERROR, code, text.encode()[:ERROR_TEXT_BYTES_MAX])


def read_error(frame: Frame) -> tuple[ErrorCode, str]:
    """Return the code and the text of an ERROR frame, even a malformed one."""
    return ErrorCode(frame.sequence), frame.payload[:ERROR_TEXT_BYTES_MAX].decode(errors="replace")


def encode(frame: Frame) -> tuple[bytes, bytes]:
    """Return header and payload, ready to be written one after the other."""
    start = HEADER.pack(VERSION, frame.type, frame.flags, len(frame.payload), frame.sequence, 0)[:CHECKED]
    checksum = zlib.crc32(frame.payload, zlib.crc32(start))
    return start + checksum.to_bytes(4, "big"), frame.payload


def decode_header(raw: bytes) -> tuple[FrameType, int, int, int, int]:
    """Return ``(type, flags, payload length, sequence, crc)``. Raises ProtocolError."""
    version, kind, flags, length, sequence, crc = HEADER.unpack(raw)
    if version != VERSION or flags & ~MORE:
        raise ProtocolError(f"frame of version {version}; this end speaks {VERSION}")
    try:
        type_ = FrameType(kind)
    except ValueError:
        raise ProtocolError(f"unknown frame type {kind}") from None
    if length > PAYLOAD_BYTES_MAX:
        raise ProtocolError(f"{type_.name} frame of {length} bytes, at most {PAYLOAD_BYTES_MAX} are allowed")
    return type_, flags, length, sequence, crc


async def read(reader: asyncio.StreamReader) -> Frame:
    """Read one frame. Raises ProtocolError, or asyncio.IncompleteReadError at the end of the connection."""
    header = await reader.readexactly(HEADER.size)
    type_, flags, length, sequence, crc = decode_header(header)
    payload = await reader.readexactly(length) if length else b""
    if zlib.crc32(payload, zlib.crc32(header[:CHECKED])) != crc:
        raise ProtocolError(f"{type_.name} frame {sequence} is damaged: its checksum does not match")
    return Frame(type_, sequence, payload, flags)
