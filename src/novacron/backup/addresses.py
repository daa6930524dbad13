"""What addresses of storage have in common: options behind a question mark, URLs of servers, files that they name."""

from __future__ import annotations

import configparser
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from novacron import private_file
from novacron.backup.errors import RepositoryError

PROFILE = "default"
FILE_BYTES_MAX = 1 << 20
"""Of credentials and of certificates."""


class BadAddress(RepositoryError):
    """An address of storage, or a file that it names, is not of the form that it should have."""


def options(query: str, known: tuple[str, ...]) -> dict[str, str]:
    """Return what stands behind the question mark. Raises BadAddress; the text names no value, which may be secret."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=len(known))
    except ValueError:
        raise BadAddress("the options after the ? of the address are not of the form NAME=VALUE&NAME=VALUE") from None
    given = dict(pairs)
    if len(given) != len(pairs):
        raise BadAddress("an option of the address is given twice")
    for name in given:
        if name not in known:
            raise BadAddress(f"option {name[:40]!r} of the address is unknown: use {', '.join(known)}")
    return given


def chosen(given: Mapping[str, str], name: str, choices: tuple[str, str]) -> bool:
    """Say whether an option has the second of its values. Raises BadAddress."""
    value = given.get(name, choices[0])
    if value not in choices:
        raise BadAddress(f"{name}={value[:40]!r}: use {' or '.join(choices)}")
    return value == choices[1]


def named_file(given: Mapping[str, str], name: str) -> Path | None:
    """Return a file that an option names. Raises BadAddress."""
    if name not in given:
        return None
    path = Path(given[name])
    if not path.is_absolute():
        raise BadAddress(f"{name}: write the absolute path of the file, like {name}=/etc/novacron/{name}")
    return path


def server_url(text: str, shape: str, *, plain_is_allowed: bool) -> tuple[str, str]:
    """Return a server's URL without its path, and that. ``shape`` is what a good one looks like. Raises BadAddress."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise BadAddress(f"the server is not a URL: write it like {shape}") from None
    if "@" in parts.netloc:
        raise BadAddress("credentials do not belong in an address: put them into a file, with credentials=/FILE")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise BadAddress(f"the server is not a URL: write it like {shape}")
    if parts.scheme == "http" and not plain_is_allowed and not _is_loopback(host):
        raise BadAddress(
            f"{host} is used without TLS: write https://, or allow plain HTTP with plain-http=yes in a private network"
        )
    literal = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{literal}" + ("" if port is None else f":{port}"), parts.path


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def certificates(path: Path | None) -> str | None:
    """Return the certificates that are trusted beside the system's, as PEM. Raises BadAddress."""
    return None if path is None else _read(path, "ca")


def _read(path: Path, option: str) -> str:
    """Return what is in a small file of text. Raises BadAddress."""
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX).decode()
    except OSError as error:
        raise BadAddress(f"{option}: {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadAddress(f"{option}: {path} is not a text file") from None


def secret_text(path: Path) -> str:
    """Return what is in a file with credentials. Raises BadAddress, whose text shows nothing of the file."""
    text = _read(path, "credentials")
    if private_file.readable_by_others(path):
        raise BadAddress(f"credentials: every user of this host can read {path}: chmod 600 it, and replace them")
    return text


def profile(text: str, path: Path, needed: tuple[str, ...]) -> Mapping[str, str]:
    """Return what a file with credentials says in its one section. Raises BadAddress."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text)
        section = parser[PROFILE]
    except (configparser.Error, KeyError):
        section = None
    if section is None or any(not section.get(name) for name in needed):
        raise BadAddress(f"credentials: {path} has no section [{PROFILE}] with {' and '.join(needed)}")
    return section
