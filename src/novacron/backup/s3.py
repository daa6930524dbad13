"""A repository in a bucket of object storage that speaks S3, with the keys that restic's S3 backend uses.

Each file is one object, written by one request that fails if the object is there (``If-None-Match: *``): so a file is
there whole or not at all, and none is written over. Requests have a limit of time, and are repeated a few times.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from obstore import exceptions
from obstore.store import S3Store

from novacron.backup.addresses import BadAddress
from novacron.backup.errors import Damaged, NotAllowed, NotStored, RepositoryError
from novacron.backup.requests import LIMITS, RequestLimits, repeated
from novacron.backup.s3_address import S3Address
from novacron.backup.storage import NAME, Kind, bytes_max, path_of

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, S3Config, S3Credential

T = TypeVar("T")
KEYS_AT_ONCE = 1000
"""Of a list; servers send as many with one answer."""
KEYS_MAX = 1 << 22
"""Of one kind: packs of 64 TiB."""
CREDENTIALS_LIFE = timedelta(minutes=10)
"""After which they are read again."""
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,64})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_CONFLICT, _NO_BUCKET = "status code: 409", "NoSuchBucket"
_NOT_ALLOWED, _PAST_END = ("401", "403"), "416"
_PASSING = ("408", "409", "425", "429")
"""Answers to requests that are worth repeating, as those from 500 on are."""
_RIGHTS = "check the credentials, and what the bucket's policy allows"
_REGION = "the bucket is in another region: set it with region="
_EXPIRED = "the session token has expired: replace the credentials"
_REASONS = {
    "AccessDenied": f"access was denied: {_RIGHTS}",
    "InvalidAccessKeyId": f"the server does not know the access key: {_RIGHTS}",
    "SignatureDoesNotMatch": f"the secret key is wrong: {_RIGHTS}",
    "ExpiredToken": _EXPIRED,
    "RequestTimeTooSkewed": "this host's clock differs too much from the server's",
    "NoSuchBucket": "there is no such bucket: create it, or correct its name",
    "NotImplemented": "the server does not support conditional writes (If-None-Match), which repositories need",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
}


class S3Storage:
    """A repository at an address. Any thread may use it."""

    def __init__(self, address: S3Address, limits: RequestLimits = LIMITS) -> None:
        """Nothing is sent yet. Raises BadAddress."""
        self.address, self._limits = address, limits
        self._store = _store(address, limits)

    def read(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""

        def request() -> bytes:
            answer = self._store.get(self._key(kind, name), options=_range(offset, length))
            begin, end = answer.range
            if end - begin > bytes_max(offset, length):
                raise Damaged(f"{path_of(kind, name)} in {self.address} exceeds the size limit of such files")
            return bytes(answer.bytes())

        content = self._repeated(f"{path_of(kind, name)} can't be read from {self.address}", request)[:length]
        if length is not None and len(content) != length:
            raise Damaged(f"{path_of(kind, name)} in {self.address} is shorter than expected")
        return content

    def write(self, kind: Kind, name: str, content: bytes) -> None:
        def request() -> None:
            try:
                self._store.put(self._key(kind, name), content, mode="create", use_multipart=False)
            except exceptions.AlreadyExistsError as error:
                if _CONFLICT in str(error):  # somebody else writes it at this moment, and may fail
                    raise

        self._repeated(f"{path_of(kind, name)} can't be written to {self.address}", request)

    def names(self, kind: Kind) -> Iterator[str]:
        prefix, keys = f"{self.address.prefix}/{kind}/".lstrip("/"), list[str]()

        def request() -> None:  # goes on where the one before ended
            for part in self._store.list(prefix, offset=keys[-1] if keys else None, chunk_size=KEYS_AT_ONCE):
                keys.extend(entry["path"] for entry in part)
                if len(keys) > KEYS_MAX:
                    raise RepositoryError(f"{kind} in {self.address} has more than {KEYS_MAX} files")

        self._repeated(f"{kind} can't be listed in {self.address}", request)
        for key in keys:
            name = key.rpartition("/")[2]
            if NAME.match(name) and key == self._key(kind, name):
                yield name

    def remove(self, kind: Kind, name: str) -> None:
        def request() -> None:
            self._store.delete(self._key(kind, name))

        try:
            self._repeated(f"{path_of(kind, name)} can't be removed from {self.address}", request)
        except NotStored:
            return

    def _key(self, kind: Kind, name: str) -> str:
        path = path_of(kind, name)
        return f"{self.address.prefix}/{path}" if self.address.prefix else path

    def _repeated(self, failing: str, request: Callable[[], T]) -> T:
        errors = exceptions.BaseError, OSError, ValueError
        return repeated(request, errors, lambda error: _failure(error, failing), self._limits)


def _store(address: S3Address, limits: RequestLimits) -> S3Store:
    """Return the library's client. Raises BadAddress."""
    url, certificates = address.url(), address.certificates()
    config: S3Config = {
        "region": address.region, "aws_endpoint_url_s3": url, "endpoint": url,
        "virtual_hosted_style_request": address.bucket_in_host, "conditional_put": "etag",
        "checksum_algorithm": "SHA256", "disable_bulk_delete": True, "skip_signature": False,
    }  # fmt: skip
    client: ClientConfig = {
        "connect_timeout": timedelta(seconds=limits.connect_s), "timeout": timedelta(seconds=limits.request_s),
        "allow_http": url.startswith("http://"), "allow_invalid_certificates": False,
    }  # fmt: skip
    if certificates is not None:
        client["root_certificate"] = certificates
    try:
        return S3Store(
            address.bucket, config=config, client_options=client, retry_config={"max_retries": 0},
            credential_provider=_signing(address),
        )  # fmt: skip
    except (exceptions.BaseError, ValueError):
        raise BadAddress(f"{address} can't be used: check its endpoint, region and ca") from None


def _signing(address: S3Address) -> Callable[[], S3Credential]:
    """Return what says with what to sign; it is asked again in long work. Raises BadAddress."""
    read = address.credentials()

    def credentials() -> S3Credential:
        nonlocal read
        with contextlib.suppress(BadAddress):  # a file that is being replaced
            read = address.credentials()
        return {
            "access_key_id": read.key, "secret_access_key": read.secret, "token": read.token,
            "expires_at": datetime.now(UTC) + CREDENTIALS_LIFE,
        }  # fmt: skip

    return credentials


def _range(offset: int, length: int | None) -> GetOptions:
    """Return how to ask for a part of an object."""
    if offset < 0:
        return {"range": {"suffix": -offset}}
    if length is not None:
        return {"range": (offset, offset + length)}
    return {"range": {"offset": offset}} if offset else {}


def _failure(error: Exception, failing: str) -> tuple[RepositoryError, bool]:
    """Return what a failed request raises, in words without anything secret, and whether it is worth repeating."""
    text = str(error)
    code, status = _CODE.search(text), _STATUS.search(text)
    if status is None:
        return RepositoryError(f"{failing}: the server does not answer correctly or in time: check that it runs"), True
    answer = f"the server answers {status[1]}" + ("" if code is None else f" {code[1]}")
    reason = answer if code is None else _REASONS.get(code[1], answer)
    if isinstance(error, FileNotFoundError) and (code is None or code[1] != _NO_BUCKET):
        return NotStored(f"{failing}: {reason}"), False
    if status[1] == _PAST_END:
        return Damaged(f"{failing}: it is shorter than expected"), False
    if status[1] in _NOT_ALLOWED:
        return NotAllowed(f"{failing}: {reason}"), False
    return RepositoryError(f"{failing}: {reason}"), reason is answer and (status[1] in _PASSING or status[1] >= "500")
