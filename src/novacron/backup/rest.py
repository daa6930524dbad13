"""A repository behind restic's REST protocol, version 2: restic's own server, or rclone before any other storage.

Protocol: https://restic.readthedocs.io/en/stable/100_references.html#rest-backend. It has no conditional writes: a file
that is there is looked for first.
"""

from __future__ import annotations

import base64
import http
import ssl
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec
import urllib3

from novacron.backup.addresses import BadAddress
from novacron.backup.errors import Damaged, NotAllowed, NotStored, RepositoryError
from novacron.backup.requests import LIMITS, RequestLimits, repeated
from novacron.backup.rest_address import RestAddress
from novacron.backup.storage import NAME, Kind, bytes_max, path_of

T = TypeVar("T")
VERSION = "application/vnd.x.restic.rest.v2"
CHUNK_BYTES, LIST_BYTES_MAX = 1 << 20, 256 << 20
CONNECTIONS_MAX = 8
_PASSING = (408, 425, 429)
"""Answers to requests that are worth repeating, as those from 500 on are."""


class _UnwantedStatus(Exception):
    """The server answered that it did not do as asked."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class _ListedFile(msgspec.Struct):
    name: str


class RestStorage:
    """A repository at an address. Any thread may use it."""

    def __init__(self, address: RestAddress, limits: RequestLimits = LIMITS) -> None:
        """Nothing is sent yet. Raises BadAddress."""
        self.address, self._limits = address, limits
        credentials = address.credentials()
        self._headers = {"Accept": VERSION}
        if credentials is not None:
            self._headers["Authorization"] = f"Basic {base64.b64encode(':'.join(credentials).encode()).decode()}"
        self._pool = urllib3.PoolManager(
            maxsize=CONNECTIONS_MAX, block=True, ssl_context=_trusting(address), retries=False,
            timeout=urllib3.Timeout(connect=limits.connect_s, read=limits.request_s),
        )  # fmt: skip

    def read(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""
        path = path_of_file(kind, name)
        headers = {} if offset == 0 and length is None else {"Range": _range(offset, length)}

        def request() -> bytes:
            return self._ask("GET", path, headers=headers, most=bytes_max(offset, length))

        content = self._repeated(f"{path} can't be read from {self.address}", request)[:length]
        if length is not None and len(content) != length:
            raise Damaged(f"{path} in {self.address} is shorter than expected")
        return content

    def write(self, kind: Kind, name: str, content: bytes) -> None:
        path = path_of_file(kind, name)
        failing = f"{path} can't be written to {self.address}"
        if kind is Kind.KEY:  # the first file of a repository
            self._repeated(failing, lambda: self._ask("POST", "?create=true"))
        if self._has(failing, path):
            return
        try:
            self._repeated(failing, lambda: self._ask("POST", path, content))
        except NotAllowed:
            if not self._has(failing, path):  # somebody else was faster
                raise

    def _has(self, failing: str, path: str) -> bool:
        try:
            self._repeated(failing, lambda: self._ask("HEAD", path))
        except NotStored:
            return False
        return True

    def names(self, kind: Kind) -> Iterator[str]:
        try:
            listed = self._repeated(f"{kind} can't be listed in {self.address}", lambda: self._ask("GET", f"{kind}/"))
        except NotStored:
            return
        try:
            entries = msgspec.json.decode(listed, type=list[_ListedFile] | None)
        except msgspec.MsgspecError:
            raise RepositoryError(
                f"{kind} can't be listed in {self.address}: the server does not speak version 2 of restic's protocol"
            ) from None
        yield from sorted(entry.name for entry in entries or () if NAME.match(entry.name))

    def remove(self, kind: Kind, name: str) -> None:
        path = path_of_file(kind, name)
        try:
            self._repeated(f"{path} can't be removed from {self.address}", lambda: self._ask("DELETE", path))
        except NotStored:
            return

    def _ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None,
        most: int = LIST_BYTES_MAX,
    ) -> bytes:  # fmt: skip
        """Send one request; return what the server answers. Raises _UnwantedStatus, HTTPError, OSError; Damaged for
        more than ``most`` bytes."""
        deadline = time.monotonic() + self._limits.request_s
        base = f"{self.address.server}/{self.address.path}".rstrip("/")
        answer = self._pool.request(
            method, f"{base}/{path}", body=body, headers={**self._headers, **(headers or {})}, redirect=False,
            preload_content=False,
        )  # fmt: skip
        content, is_good = bytearray(), answer.status in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT)
        try:
            if headers and answer.status == http.HTTPStatus.OK:
                raise _UnwantedStatus(http.HTTPStatus.NOT_IMPLEMENTED)
            while chunk := answer.read(CHUNK_BYTES):
                content += chunk
                if len(content) > (most if is_good else CHUNK_BYTES):
                    raise Damaged(f"{path} in {self.address} is longer than it should be")
                if time.monotonic() > deadline:
                    raise TimeoutError
        except BaseException:  # the connection has something on it that nobody reads
            answer.close()
            raise
        if not is_good:
            raise _UnwantedStatus(answer.status)
        return bytes(content)

    def _repeated(self, failing: str, request: Callable[[], T]) -> T:
        errors = _UnwantedStatus, urllib3.exceptions.HTTPError, OSError
        return repeated(request, errors, lambda error: _failure(error, failing), self._limits)


def path_of_file(kind: Kind, name: str) -> str:
    """Return where the protocol has a file: packs without the folders that other backends have for them."""
    return f"{kind}/{name}" if kind is Kind.PACK else path_of(kind, name)


def _range(offset: int, length: int | None) -> str:
    if offset < 0:
        return f"bytes={offset}"
    return f"bytes={offset}-" + ("" if length is None else str(offset + length - 1))


def _trusting(address: RestAddress) -> ssl.SSLContext:
    """Return a context that trusts the system's certificates and the address's. Raises BadAddress."""
    context, certificates = ssl.create_default_context(), address.certificates()
    if certificates is not None:
        try:
            context.load_verify_locations(cadata=certificates)
        except ssl.SSLError:
            raise BadAddress(f"ca: {address.ca_file} contains no certificates (PEM)") from None
    return context


def _failure(error: Exception, failing: str) -> tuple[RepositoryError, bool]:
    """Return what a failed request raises, in words without anything secret, and whether it is worth repeating."""
    if not isinstance(error, _UnwantedStatus):
        return RepositoryError(f"{failing}: the server does not answer correctly or in time: check that it runs"), True
    match error.status:
        case http.HTTPStatus.NOT_FOUND:
            return NotStored(f"{failing}: it does not exist"), False
        case http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return Damaged(f"{failing}: it is shorter than expected"), False
        case http.HTTPStatus.UNAUTHORIZED | http.HTTPStatus.FORBIDDEN:
            return NotAllowed(
                f"{failing}: access was denied: check the credentials, and whether they allow deleting"
            ), False
        case status:
            passes = status in _PASSING or (status >= 500 and status != http.HTTPStatus.NOT_IMPLEMENTED)
            return RepositoryError(f"{failing}: the server answers {int(status)}"), passes
