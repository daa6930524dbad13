"""Files from outside: over HTTP from a public host, or from below a directory of this one, and from nowhere else."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

import urllib3

from novacron.disk.errors import Unacceptable
from novacron.model.errors import InvalidInput
from novacron.model.image import check_url
from novacron.model.waiting import WaitCode

REDIRECTS_MAX = 5
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")
"""What is given out to networks at all: whatever else leads somewhere leads to a place of this host's own network."""
NOT_PUBLIC = (ipaddress.IPv4Network("192.88.99.0/24"), ipaddress.IPv6Network("3fff::/20"))
"""Relays of 6to4 (RFC 7526) and examples (RFC 9637), which Python 3.11 takes for public."""
UNREADABLE = WaitCode.SOURCE_UNREACHABLE
UNREACHABLE = (
    "it can't be fetched: no web server answers at a public address or at one that this node allows; ask the node's"
    " administrator (--imports-from), or upload the file"
)
CONNECT_S, READ_S = 10.0, 60.0


def open_beneath(root: Path, path: str) -> BinaryIO:
    """Open a plain file below ``root`` for reading, through no link at all. Raises Unacceptable."""
    parts = PurePosixPath(path).parts
    descriptor = -1
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_NONBLOCK if last else os.O_DIRECTORY)
            inner = os.open(part, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unacceptable(f"{path} is not a regular file", UNREADABLE)
        file = os.fdopen(descriptor, "rb", buffering=0)
        descriptor = -1
        return file
    except OSError as error:
        raise Unacceptable(f"{path} can't be opened in {root}: {error.strerror}", UNREADABLE) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


class Fetch:
    """A file that is read over HTTP from a public address, or one in ``allowed``; with ``local`` from any.

    All failures to reach a server say the same: who imports learns nothing of the networks that this node reaches. The
    causes are in the agent's log. Raises Unacceptable.
    """

    def __init__(self, url: str, allowed: Sequence[IPv4Network | IPv6Network] = (), *, local: bool = False) -> None:
        self._url, self._allowed, self._local = url, allowed, local
        self._pool: urllib3.HTTPConnectionPool | None = None
        self._answer: urllib3.BaseHTTPResponse | None = None

    def __enter__(self) -> Fetch:
        url = self._url
        for _ in range(REDIRECTS_MAX + 1):
            try:
                self._answer = self._get(check_url(url))
            except (urllib3.exceptions.HTTPError, OSError, InvalidInput, _Refused) as error:
                self.__exit__()
                raise Unacceptable(UNREACHABLE, UNREADABLE) from error
            where = self._answer.headers.get("location")
            if self._answer.status == 200:
                return self
            status = self._answer.status
            self.__exit__()
            if status not in (301, 302, 303, 307, 308) or where is None:
                raise Unacceptable(f"it can't be fetched: the server answered {status}", UNREADABLE)
            url = urljoin(url, where)
        raise Unacceptable(f"it can't be fetched: more than {REDIRECTS_MAX} redirects", UNREADABLE)

    def __exit__(self, *_: object) -> None:
        if self._answer is not None:
            self._answer.close()
        if self._pool is not None:
            self._pool.close()

    def _get(self, url: str) -> urllib3.BaseHTTPResponse:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = self._address(host, port)
        timeout = urllib3.Timeout(connect=CONNECT_S, read=READ_S)
        if parts.scheme == "https":  # connect to the address that was checked, but speak to the host that was named
            self._pool = urllib3.HTTPSConnectionPool(
                address, port, timeout=timeout, retries=False, maxsize=1, server_hostname=host, assert_hostname=host
            )
        else:
            self._pool = urllib3.HTTPConnectionPool(address, port, timeout=timeout, retries=False, maxsize=1)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Host": parts.netloc, "Accept-Encoding": "identity"}
        return self._pool.request("GET", target, headers=headers, redirect=False, preload_content=False)

    def _address(self, host: str, port: int) -> str:
        """Return the one address to connect to, resolved once. Raises _Refused, OSError."""
        addresses = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        for address in addresses:
            if self._local or self._may_reach(address):
                return address
        raise _Refused(f"{host} has no public address: {', '.join(addresses)}")

    def _may_reach(self, address: str) -> bool:
        parsed = ipaddress.ip_address(address.partition("%")[0])
        plain = _embedded(parsed) or parsed
        if any(plain.version == network.version and plain in network for network in self._allowed):
            return True
        return _is_public(plain) and not _is_own(plain)

    def read(self, length: int) -> bytes:
        assert self._answer is not None
        try:
            return self._answer.read(length)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unacceptable("the transfer was interrupted", UNREADABLE) from error


class _Refused(Exception):
    """No address of a host may be reached: says which it has."""


def _embedded(address: IPv4Address | IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address to which an IPv6 address leads: a mapped one, 6to4, or NAT64."""
    if isinstance(address, IPv4Address):
        return None
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if not address.is_global or address.is_multicast:
        return False
    if isinstance(address, IPv6Address) and address not in PUBLIC_IPV6:
        return False
    return not any(address.version == network.version and address in network for network in NOT_PUBLIC)


def _is_own(address: IPv4Address | IPv6Address) -> bool:
    """Say whether this host has an address: then it can be bound."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True
