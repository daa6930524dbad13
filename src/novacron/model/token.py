"""What a token is: the secret that proves who calls, of which only the hash is kept."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime
from enum import StrEnum

import msgspec

from novacron.model.access import Right
from novacron.model.errors import InvalidInput

API_PREFIX = "nva_"
JOIN_PREFIX = "nvj_"


class TokenKind(StrEnum):
    API = "api"
    SESSION = "session"
    """Of a browser: a cookie, whose changes need proof that they come from our own pages."""


class Token(msgspec.Struct, frozen=True):
    """An API token as stored: never the secret itself."""

    id: str
    name: str
    kind: TokenKind
    user: str
    user_name: str
    scopes: tuple[Right, ...] | None
    """What it may be used for, of what its user may do; None: all of that."""
    project: str | None
    """In which project it is good; None: in all of its user's."""
    expires_at: datetime | None
    revoked: bool
    revision: int
    created_at: datetime


class JoinTicket(msgspec.Struct, frozen=True):
    """What a join token carries: where to go, whom to trust there, and the one-time secret."""

    api_url: str
    link_url: str
    ca_pem: str
    secret: str


def api_secret(random: bytes) -> str:
    """Return an API token from 32 random bytes."""
    return API_PREFIX + base64.urlsafe_b64encode(random).decode().rstrip("=")


def csrf_of(secret: str) -> str:
    """Return what a browser's pages send with changes, to prove that they may read what a login answered."""
    return hashlib.sha256(b"csrf:" + secret.encode()).hexdigest()


def hash_secret(secret: str) -> bytes:
    """Return the SHA-256 of a secret. Secrets here are 256 random bits, so a slow hash would gain nothing."""
    return hashlib.sha256(secret.encode()).digest()


def encode_ticket(ticket: JoinTicket) -> str:
    """Return the join token that an operator copies to a host."""
    return JOIN_PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(ticket)).decode().rstrip("=")


def decode_ticket(token: str) -> JoinTicket:
    """Return what a join token carries, or raise InvalidInput."""
    body = token.strip().removeprefix(JOIN_PREFIX)
    try:
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        return msgspec.msgpack.decode(raw, type=JoinTicket)
    except (ValueError, msgspec.DecodeError):
        raise InvalidInput(
            "this is not a join token", field="join", hint="make one with: novacron node join-token"
        ) from None
