"""Whose pages a VM has: the project within which they may be shared, and the key of their digests."""

from __future__ import annotations

import msgspec


class Tenant(msgspec.Struct, frozen=True):
    """To whom pages belong: nothing is shared beyond a project, and its key makes their digests."""

    project: str
    key: bytes
