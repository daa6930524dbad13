"""The consoles of a VM: its serial line and its display."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

PREFIX = "nvt_"
"""Prefix of a ticket's secret."""


class ConsoleKind(StrEnum):
    """Which console of a VM."""

    SERIAL = "serial"
    """The first serial line, as raw bytes."""
    DISPLAY = "display"
    """The display, in VNC's protocol (RFC 6143)."""


class Ticket(msgspec.Struct, frozen=True):
    """A one-time permission to open one console."""

    ticket: str
    vm: str
    kind: ConsoleKind
    path: str
    """Path of the WebSocket, with the ticket."""
    expires_at: datetime
    revision: int = 0


class PortTicket(msgspec.Struct, frozen=True):
    """A one-time permission to open one TCP connection to a VM."""

    ticket: str
    vm: str
    port: int
    path: str
    """Path of the WebSocket, with the ticket."""
    expires_at: datetime
    revision: int = 0
