"""What a token is: the secret that proves who calls, of which only the hash is kept."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime

import msgspec

from novacron.model.errors import InvalidInput

API_PREFIX = "nva_"
JOIN_PREFIX = "nvj_"


class Token(msgspec.Struct, frozen=True):
    """An API token as stored: never the secret itself."""

    id: str
    name: str
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
