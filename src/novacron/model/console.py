"""How people look at a VM: its serial line, and its display."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

PREFIX = "nvt_"
"""Of a ticket's secret."""


class ConsoleKind(StrEnum):
    SERIAL = "serial"
    """Bytes of its first serial line."""
    DISPLAY = "display"
    """Its display, as VNC speaks (RFC 6143)."""


class Ticket(msgspec.Struct, frozen=True):
    """Opens one console, once, until it expires."""

    ticket: str
    vm: str
    kind: ConsoleKind
    path: str
    """Of the WebSocket, the ticket included."""
    expires_at: datetime
    revision: int = 0
