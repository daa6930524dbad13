"""Messages about consoles."""

from __future__ import annotations

from novacron.model.console import ConsoleKind
from novacron.wire.base import Message


class ConsoleOpen(Message, frozen=True):
    channel: int
    vm: str
    kind: ConsoleKind = ConsoleKind.SERIAL


class ConsoleInput(Message, frozen=True):
    channel: int
    data: bytes


class ConsoleClose(Message, frozen=True):
    channel: int


class ConsoleOutput(Message, frozen=True):
    """Bytes from a VM's serial console."""

    channel: int
    data: bytes


class ConsoleClosed(Message, frozen=True):
    """A console channel ended, with the reason."""

    channel: int
    reason: str
