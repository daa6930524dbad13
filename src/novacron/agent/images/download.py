"""Files from outside: over HTTP from a public host, or from below a directory of this one, and from nowhere else."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

import urllib3

from novacron.disk.errors import Unacceptable
from novacron.model.errors import InvalidInput
from novacron.model.image import check_url

REDIRECTS_MAX = 5
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
            raise Unacceptable(f"{path} is not a plain file")
        file = os.fdopen(descriptor, "rb", buffering=0)
        descriptor = -1
        return file
    except OSError as error:
        raise Unacceptable(f"{path} can't be opened in {root}: {error.strerror}") from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


class Fetch:
    """A file that is read over HTTP. With ``local`` also from this host and its own link. Raises Unacceptable."""

    def __init__(self, url: str, local: bool) -> None:
        self._local = local
        self._url = url
        self._pool: urllib3.HTTPConnectionPool | None = None
        self._answer: urllib3.BaseHTTPResponse | None = None

    def __enter__(self) -> Fetch:
        url = self._url
        for _ in range(REDIRECTS_MAX + 1):
            try:
                self._answer = self._get(check_url(url))
            except (urllib3.exceptions.HTTPError, OSError, InvalidInput) as error:
                self.__exit__()
                raise Unacceptable(f"it can't be fetched: {error}") from error
            where = self._answer.headers.get("location")
            if self._answer.status == 200:
                return self
            status = self._answer.status
            self.__exit__()
            if status not in (301, 302, 303, 307, 308) or where is None:
                raise Unacceptable(f"it can't be fetched: the server answered {status}")
            url = urljoin(url, where)
        raise Unacceptable(f"it can't be fetched: more than {REDIRECTS_MAX} redirections")

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
        addresses = [info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        for address in addresses:
            parsed = ipaddress.ip_address(str(address).partition("%")[0])
            parsed = getattr(parsed, "ipv4_mapped", None) or parsed
            if self._local or not (
                parsed.is_loopback or parsed.is_link_local or parsed.is_multicast or parsed.is_unspecified
            ):
                return str(address)
        raise Unacceptable(f"{host} is this host itself, or on its own link; see: novacron agent --help")

    def read(self, length: int) -> bytes:
        assert self._answer is not None
        try:
            return self._answer.read(length)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unacceptable(f"the transfer was interrupted: {error}") from error
