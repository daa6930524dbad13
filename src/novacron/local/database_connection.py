"""How PostgreSQL's own programs are told where a database is: what is secret goes into their environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit


class DatabaseConnection(NamedTuple):
    """``url`` may stand on a command line, which all users of the machine see."""

    url: str
    secrets: Mapping[str, str]
    """Environment variables."""

    @classmethod
    def of(cls, url: str) -> DatabaseConnection:
        """Take the password out of a URL of PostgreSQL. Raises ValueError."""
        parts = urlsplit(url)
        credentials, at, host = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        options = parse_qsl(parts.query, keep_blank_values=True)
        password = dict(options).get("password") or unquote(password)
        query = urlencode([(name, value) for name, value in options if name != "password"], safe="/:,", quote_via=quote)
        plain = urlunsplit(parts._replace(netloc=f"{user}{at}{host}", query=query))
        return cls(plain, {"PGPASSWORD": password} if password else {})
