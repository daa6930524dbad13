"""The consoles of a VM: its serial line and its display."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model.limits import SERIAL_PORTS_MAX

PREFIX = "nvt_"
"""Prefix of a ticket's secret."""

SerialNumber = Annotated[int, Meta(ge=0, le=SERIAL_PORTS_MAX)]


class ConsoleKind(StrEnum):
    """Which console of a VM."""

    SERIAL = "serial"
    """A serial port, as raw bytes."""
    DISPLAY = "display"
    """The display, in VNC's protocol (RFC 6143)."""


class ConsoleLine(StrEnum):
    """What a console is connected to: the display, or one of the serial ports."""

    SERIAL = "serial"
    """The first serial port, which every VM has."""
    SERIAL_1 = "serial-1"
    """The first one of ``serial_ports``."""
    SERIAL_2 = "serial-2"
    SERIAL_3 = "serial-3"
    DISPLAY = "display"

    @classmethod
    def of(cls, kind: ConsoleKind, serial: int) -> ConsoleLine:
        """Return the line of a console; ``serial`` is the number of its serial port."""
        return cls.DISPLAY if kind is ConsoleKind.DISPLAY else SERIALS[serial]

    @property
    def serial(self) -> int | None:
        """Return the number of the serial port, 0 for the first one. None: it is the display."""
        return None if self is ConsoleLine.DISPLAY else SERIALS.index(self)


SERIALS = (ConsoleLine.SERIAL, ConsoleLine.SERIAL_1, ConsoleLine.SERIAL_2, ConsoleLine.SERIAL_3)
"""The serial ports, by number."""


class Ticket(msgspec.Struct, frozen=True):
    """A one-time permission to open one console."""

    ticket: str
    vm: str
    kind: ConsoleKind
    path: str
    """Path of the WebSocket, with the ticket."""
    expires_at: datetime
    revision: int = 0
    serial: SerialNumber = 0
    """Of a serial console: the number of its port; 0: the first one."""


class PortTicket(msgspec.Struct, frozen=True):
    """A one-time permission to open one TCP connection to a VM."""

    ticket: str
    vm: str
    port: int
    path: str
    """Path of the WebSocket, with the ticket."""
    expires_at: datetime
    revision: int = 0
