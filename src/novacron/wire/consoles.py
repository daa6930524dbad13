"""Messages about consoles, and about TCP connections to guests' ports, which share their channels."""

from __future__ import annotations

from novacron.model.console import ConsoleLine
from novacron.wire.base import Message

CLOSED = "closed"
"""The reason where there is none: one of the two ends wanted it so."""


class ConsoleOpen(Message, frozen=True):
    channel: int
    vm: str
    kind: ConsoleLine = ConsoleLine.SERIAL
    port: int = 0
    """Not 0: no console, but this TCP port of the guest."""


class ConsoleInput(Message, frozen=True):
    """Bytes to a guest. None to a port: that is the end of them."""

    channel: int
    data: bytes


class ConsoleClose(Message, frozen=True):
    channel: int


class ConsoleOutput(Message, frozen=True):
    """Bytes from a VM's console."""

    channel: int
    data: bytes


class ConsoleClosed(Message, frozen=True):
    """A console channel ended, with the reason."""

    channel: int
    reason: str


class ConsoleTaken(Message, frozen=True):
    """Of what is on its way to a port or from it, so much was taken: as much more may follow. Either side says it."""

    channel: int
    size_bytes: int
