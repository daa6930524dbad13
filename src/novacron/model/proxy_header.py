"""The header in which reverse proxies say whose request they pass on."""

from __future__ import annotations

from enum import StrEnum


class ProxyHeader(StrEnum):
    """Only one counts: a proxy that writes one of them may pass the other on as a client sent it."""

    X_FORWARDED_FOR = "x-forwarded-for"
    FORWARDED = "forwarded"
    """RFC 7239."""
