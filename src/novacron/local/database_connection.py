"""How PostgreSQL's own programs are told where a database is: what is secret goes into their environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode

from novacron.store.hosts import UrlParts

FOLLOW = {
    "target_session_attrs": "read-write",
    "connect_timeout": "3",
    "keepalives_idle": "3",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": "6000",
}
"""Of libpq, where a URL names several servers: find the primary, and notice soon that it is silent."""


class DatabaseConnection(NamedTuple):
    """``url`` may stand on a command line, which all users of the machine see."""

    url: str
    secrets: Mapping[str, str]
    """Environment variables."""

    @classmethod
    def of(cls, url: str) -> DatabaseConnection:
        """Take the password out of a URL of PostgreSQL. Raises ValueError."""
        parts = UrlParts.of(url)
        user, _, password = parts.credentials.removesuffix("@").partition(":")
        at = "@" if parts.credentials else ""
        options = parse_qsl(parts.query, keep_blank_values=True)
        password = dict(options).get("password") or unquote(password)
        if "," in parts.hosts:
            options = [*options, *((name, value) for name, value in FOLLOW.items() if name not in dict(options))]
        query = urlencode([(name, value) for name, value in options if name != "password"], safe="/:,", quote_via=quote)
        plain = str(parts._replace(credentials=f"{user}{at}", query=query))
        return cls(plain, {"PGPASSWORD": password} if password else {})
