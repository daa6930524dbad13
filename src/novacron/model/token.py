"""Tokens: secrets that authenticate callers. Only their hashes are stored."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import datetime
from enum import StrEnum

import msgspec

from novacron.model.access import Right
from novacron.model.errors import InvalidInput

API_PREFIX = "nva_"
JOIN_PREFIX = "nvj_"


class TokenKind(StrEnum):
    """What a token is for."""

    API = "api"
    SESSION = "session"
    """A browser's session: its token is in a cookie, and changes need a CSRF token too."""


class Lifetimes(msgspec.Struct, frozen=True):
    """How long sessions and API tokens live at most, and how long they may be unused; None: no such limit."""

    session_s: float = 12 * 3600.0
    session_idle_s: float | None = 3600.0
    token_s: float | None = None
    token_idle_s: float | None = None

    def of_token(self, requested_s: int | None) -> int | None:
        """Return how long a new API token lives; None: for ever. Raises InvalidInput."""
        if self.token_s is None:
            return requested_s
        if requested_s is not None and requested_s > self.token_s:
            raise InvalidInput(
                f"API tokens live for {int(self.token_s)} s at most", field="expires_in_s",
                hint="ask for a shorter lifetime, or let the server's administrator raise --token-life",
            )  # fmt: skip
        return int(self.token_s) if requested_s is None else requested_s


class Token(msgspec.Struct, frozen=True):
    """An API token as stored: never the secret itself."""

    id: str
    name: str
    kind: TokenKind
    user: str
    user_name: str
    scopes: tuple[Right, ...] | None
    """The rights to which it is limited; None: all rights of its user."""
    project: str | None
    """The only project in which it is valid; None: all projects of its user."""
    expires_at: datetime | None
    revoked: bool
    revision: int
    created_at: datetime


class JoinTicket(msgspec.Struct, frozen=True):
    """The content of a join token: the server's addresses, whom to trust when the API is asked (PEM; empty: whom the
    host trusts), and a one-time secret."""

    api_url: str
    link_url: str
    ca_pem: str
    secret: str


def api_secret(random: bytes) -> str:
    """Return an API token from 32 random bytes."""
    return API_PREFIX + base64.urlsafe_b64encode(random).decode().rstrip("=")


def csrf_of(secret: str) -> str:
    """Return the CSRF token of a session. Pages get it from the answer to a login, and send it with changes."""
    return hashlib.sha256(b"csrf:" + secret.encode()).hexdigest()


def hash_secret(secret: str) -> bytes:
    """Return the SHA-256 of a secret. Secrets here are 256 random bits, so a slow hash would gain nothing."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()


def same_secret(one: str, other: str) -> bool:
    """Compare secrets in constant time. Callers choose one of them: it may be any text."""
    return hmac.compare_digest(one.encode(errors="surrogatepass"), other.encode(errors="surrogatepass"))


def keyed_digest(key: bytes, text: str) -> str:
    """Return the HMAC (SHA-256, hexadecimal) of a text: whoever has not the key can't make it."""
    return hmac.new(key, text.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()


def encode_ticket(ticket: JoinTicket) -> str:
    """Return a ticket as the join token that an operator copies to a host."""
    return JOIN_PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(ticket)).decode().rstrip("=")


def decode_ticket(token: str) -> JoinTicket:
    """Return the content of a join token, or raise InvalidInput."""
    body = token.strip().removeprefix(JOIN_PREFIX)
    try:
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        return msgspec.msgpack.decode(raw, type=JoinTicket)
    except (ValueError, msgspec.DecodeError):
        raise InvalidInput(
            "this is not a join token", field="join", hint="make one with: novacron node join-token --node NAME"
        ) from None
