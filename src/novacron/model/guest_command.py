"""Commands that run in a guest, and pieces of its files, through the guest agent."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model import limits

Argument = Annotated[str, Meta(max_length=limits.GUEST_ARGUMENT_LENGTH_MAX, pattern=r"^[^\x00]*\Z")]
Variable = Annotated[
    str, Meta(max_length=limits.GUEST_ARGUMENT_LENGTH_MAX, pattern=r"^[A-Za-z_][A-Za-z0-9_]*=[^\x00]*\Z")
]
GuestPath = Annotated[str, Meta(min_length=1, max_length=limits.GUEST_PATH_LENGTH_MAX, pattern=r"^[^\x00]+\Z")]


class NewCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A program with its arguments, as the guest's agent starts it: with its own rights, without a shell."""

    arguments: Annotated[tuple[Argument, ...], Meta(min_length=1, max_length=limits.GUEST_ARGUMENTS_MAX)]
    """The program, by its path or its name, and what it is given."""
    environment: Annotated[tuple[Variable, ...], Meta(max_length=limits.GUEST_ARGUMENTS_MAX)] = ()
    """``NAME=value``; without any, the guest agent's own."""
    input: Annotated[bytes, Meta(max_length=limits.GUEST_INPUT_BYTES_MAX)] = b""
    """What it reads from its standard input, in Base64."""


class StartedCommand(msgspec.Struct, frozen=True):
    """A program that was started in a guest."""

    pid: int
    """Its process id in the guest."""


class GuestCommand(msgspec.Struct, frozen=True):
    """The state of a program in the guest, and its output once it has ended."""

    pid: int
    running: bool
    exit_code: int | None = None
    """None: it runs, or a signal ended it."""
    signal: int | None = None
    """Which signal ended it; on Windows, which exception."""
    stdout: bytes = b""
    """In Base64. It comes from the guest: it may hold anything."""
    stderr: bytes = b""
    """Likewise."""
    truncated: bool = False
    """It printed more than is kept."""


class FilePiece(msgspec.Struct, frozen=True):
    """A piece of a file in a guest."""

    data: bytes
    """In Base64. It comes from the guest: it may hold anything."""
    end: bool
    """The file ends with this piece."""


class FileWritten(msgspec.Struct, frozen=True):
    """How much of a file in a guest is written: the next piece begins here."""

    size_bytes: int
