"""Where a repository is behind restic's REST protocol: the address that operators write, and the credentials.

An address is ``rest:https://HOST/PATH?credentials=/FILE``, as restic writes it; the file has the user and the password.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import msgspec

from novacron.backup import addresses
from novacron.backup.addresses import BadAddress

SCHEME = "rest:"
SHAPE = "rest:https://HOST:PORT/PATH?credentials=/FILE"
OPTIONS = ("credentials", "ca", "plain-http")
_PART = re.compile(r"[A-Za-z0-9!_.*'()-]{1,200}\Z")


class RestCredentials(NamedTuple):
    """What a server is shown."""

    user: str
    password: str

    def __repr__(self) -> str:
        return "RestCredentials(...)"


class RestAddress(msgspec.Struct, frozen=True):
    """A place on a REST server; ``address / name`` is a place below it."""

    server: str
    """Its URL, without a path."""
    path: str = ""
    credentials_file: Path | None = None
    """None: they are in the environment, or the server asks for none."""
    ca_file: Path | None = None
    """Certificates that are trusted beside the system's."""

    @classmethod
    def parse(cls, text: str) -> RestAddress:
        """Read an address as operators write it. Raises BadAddress."""
        address, _, query = text.removeprefix(SCHEME).partition("?")
        given = addresses.options(query, OPTIONS)
        plain_is_allowed = addresses.chosen(given, "plain-http", ("no", "yes"))
        server, path = addresses.server_url(address, SHAPE, plain_is_allowed=plain_is_allowed)
        path = path.strip("/")
        if any(not _PART.match(part) or part in (".", "..") for part in path.split("/") if path):
            raise BadAddress(f"path {path!r}: use letters, digits and any of !_.*'()- between its slashes")
        return cls(server, path, addresses.named_file(given, "credentials"), addresses.named_file(given, "ca"))

    def __truediv__(self, name: str) -> RestAddress:
        return msgspec.structs.replace(self, path=f"{self.path}/{name}".lstrip("/"))

    def __str__(self) -> str:
        return f"{SCHEME}{self.server}/{self.path}"

    def certificates(self) -> str | None:
        """Return the certificates that are trusted beside the system's, as PEM. Raises BadAddress."""
        return addresses.certificates(self.ca_file)

    def credentials(self) -> RestCredentials | None:
        """Read the credentials; None: there are none. Raises BadAddress."""
        if self.credentials_file is not None:
            text = addresses.secret_text(self.credentials_file)
            read = addresses.profile(text, self.credentials_file, ("username", "password"))
            return RestCredentials(read["username"], read["password"])
        user, password = os.environ.get("RESTIC_REST_USERNAME"), os.environ.get("RESTIC_REST_PASSWORD")
        return RestCredentials(user, password) if user and password else None
