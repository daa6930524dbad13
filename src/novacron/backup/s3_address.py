"""Where a repository is in object storage: the address that operators write, and the credentials that open it.

An address is ``s3://BUCKET/PREFIX?endpoint=URL&...``. It holds no secret: those are in a file that it names, in the
form of AWS's own tools, or in the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from novacron.backup import addresses
from novacron.backup.addresses import BadAddress

SCHEME = "s3://"
SHAPE = "s3://BUCKET/PREFIX?endpoint=https://HOST:PORT&credentials=/FILE"
DEFAULT_REGION = "us-east-1"
OPTIONS = ("endpoint", "region", "credentials", "ca", "bucket-in", "plain-http")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
_PART = re.compile(r"[A-Za-z0-9!_.*'()-]{1,200}\Z")
_REGION = re.compile(r"[a-z0-9-]{1,64}\Z")


class S3Credentials(NamedTuple):
    """What requests are signed with."""

    key: str
    secret: str
    token: str | None = None

    def __repr__(self) -> str:
        return "S3Credentials(...)"


class S3Address(msgspec.Struct, frozen=True):
    """A place in a bucket; ``address / name`` is a place below it."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    """URL of the server; None: AWS's of the region."""
    region: str = DEFAULT_REGION
    bucket_in_host: bool = False
    """The bucket is a part of the host's name, not of the path."""
    credentials_file: Path | None = None
    """None: they are in the environment."""
    ca_file: Path | None = None
    """Certificates that are trusted beside the system's."""

    @classmethod
    def parse(cls, text: str) -> S3Address:
        """Read an address as operators write it. Raises BadAddress."""
        bucket, prefix, given = _split(text)
        if not _BUCKET.match(bucket) or ".." in bucket:
            raise BadAddress(f"{bucket!r} is not a bucket name: write it like {SHAPE}")
        if any(not _PART.match(part) or part in (".", "..") for part in prefix.split("/") if prefix):
            raise BadAddress(f"prefix {prefix!r}: use letters, digits and any of !_.*'()- between its slashes")
        region = given.get("region", DEFAULT_REGION)
        if not _REGION.match(region):
            raise BadAddress(f"region {region!r}: write it like {DEFAULT_REGION}")
        return cls(
            bucket, prefix, _endpoint(given), region, addresses.chosen(given, "bucket-in", ("path", "host")),
            addresses.named_file(given, "credentials"), addresses.named_file(given, "ca"),
        )  # fmt: skip

    def __truediv__(self, name: str) -> S3Address:
        return msgspec.structs.replace(self, prefix=f"{self.prefix}/{name}".lstrip("/"))

    def __str__(self) -> str:
        place = f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")
        return place if self.endpoint is None else f"{place} at {self.endpoint}"

    def url(self) -> str:
        """Return where requests go."""
        endpoint = self.endpoint or f"https://s3.{self.region}.amazonaws.com"
        if not self.bucket_in_host:
            return endpoint
        scheme, _, host = endpoint.partition("://")
        return f"{scheme}://{self.bucket}.{host}"

    def certificates(self) -> str | None:
        """Return the certificates that are trusted beside the system's, as PEM. Raises BadAddress."""
        return addresses.certificates(self.ca_file)

    def credentials(self) -> S3Credentials:
        """Read the credentials, anew each time: they may have been replaced. Raises BadAddress."""
        if self.credentials_file is not None:
            return _credentials_in(self.credentials_file)
        key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
        if not key or not secret:
            raise BadAddress(
                f"there are no credentials for {self}: set credentials=/FILE, or the variables "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        return S3Credentials(key, secret, os.environ.get("AWS_SESSION_TOKEN") or None)


def _split(text: str) -> tuple[str, str, dict[str, str]]:
    """Return bucket, prefix and options. Raises BadAddress."""
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = urlsplit("")
    if not text.startswith(SCHEME) or parts.fragment or parts.scheme != SCHEME.partition(":")[0]:
        raise BadAddress(f"this is not an address of object storage: write it like {SHAPE}")
    if "@" in parts.netloc:
        raise BadAddress("credentials do not belong in an address: put them into a file, with credentials=/FILE")
    return parts.netloc, parts.path.strip("/"), addresses.options(parts.query, OPTIONS)


def _endpoint(given: Mapping[str, str]) -> str | None:
    """Return a server's URL without a slash at its end. Raises BadAddress."""
    plain_is_allowed = addresses.chosen(given, "plain-http", ("no", "yes"))
    if "endpoint" not in given:
        return None
    shape = "endpoint=https://s3.example.net:9000"
    url, path = addresses.server_url(given["endpoint"], shape, plain_is_allowed=plain_is_allowed)
    if path.strip("/"):
        raise BadAddress(f"the endpoint has a path: write it like {shape}")
    return url


class _AwsJson(msgspec.Struct):
    """Credentials as AWS's tools print them."""

    key: str = msgspec.field(name="AccessKeyId")
    secret: str = msgspec.field(name="SecretAccessKey")
    token: str | None = msgspec.field(name="SessionToken", default=None)


def _credentials_in(path: Path) -> S3Credentials:
    """Read credentials from a file, either of AWS's forms. Raises BadAddress, whose text shows nothing of the file."""
    text = addresses.secret_text(path)
    if text.lstrip().startswith("{"):
        try:
            credentials = msgspec.json.decode(text, type=_AwsJson)
        except msgspec.MsgspecError:
            raise BadAddress(f"credentials: {path} is JSON without AccessKeyId and SecretAccessKey") from None
        return S3Credentials(credentials.key, credentials.secret, credentials.token)
    read = addresses.profile(text, path, ("aws_access_key_id", "aws_secret_access_key"))
    return S3Credentials(read["aws_access_key_id"], read["aws_secret_access_key"], read.get("aws_session_token"))
