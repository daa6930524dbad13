"""Where a repository is in object storage: the address that operators write, and the credentials that open it.

An address is ``s3://BUCKET/PREFIX?endpoint=URL&...``. It holds no secret: those are in a file that it names, in the
form of AWS's own tools, or in the environment.
"""

from __future__ import annotations

import configparser
import ipaddress
import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

import msgspec

from novacron import private_file
from novacron.backup.errors import RepositoryError

SCHEME = "s3://"
SHAPE = "s3://BUCKET/PREFIX?endpoint=https://HOST:PORT&credentials=/FILE"
DEFAULT_REGION = "us-east-1"
PROFILE = "default"
FILE_BYTES_MAX = 1 << 20
"""Of credentials and of certificates."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
_PART = re.compile(r"[A-Za-z0-9!_.*'()-]{1,200}\Z")
_REGION = re.compile(r"[a-z0-9-]{1,64}\Z")


class BadAddress(RepositoryError):
    """An address of object storage, or a file that it names, is not of the form that it should have."""


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
        parts = _split(text)
        options = _options(parts.query)
        bucket, prefix = parts.netloc, parts.path.strip("/")
        if not _BUCKET.match(bucket) or ".." in bucket:
            raise BadAddress(f"{bucket!r} is no name of a bucket: write it like {SHAPE}")
        if any(not _PART.match(part) or part in (".", "..") for part in prefix.split("/") if prefix):
            raise BadAddress(f"prefix {prefix!r}: use letters, digits and any of !_.*'()- between its slashes")
        region = options.get("region", DEFAULT_REGION)
        if not _REGION.match(region):
            raise BadAddress(f"region {region!r}: write it like {DEFAULT_REGION}")
        endpoint = _endpoint(options.get("endpoint"), plain_is_allowed=_chosen(options, "plain-http", ("no", "yes")))
        return cls(
            bucket, prefix, endpoint, region, _chosen(options, "bucket-in", ("path", "host")),
            _file(options, "credentials"), _file(options, "ca"),
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
        return None if self.ca_file is None else _read(self.ca_file, "ca")

    def credentials(self) -> S3Credentials:
        """Read the credentials, anew each time: they may have been replaced. Raises BadAddress."""
        if self.credentials_file is not None:
            return _credentials_in(self.credentials_file)
        key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
        if not key or not secret:
            raise BadAddress(
                f"there are no credentials for {self}: name a file with them by credentials=/FILE, or set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        return S3Credentials(key, secret, os.environ.get("AWS_SESSION_TOKEN") or None)


class _SplitAddress(NamedTuple):
    netloc: str
    path: str
    query: str


def _split(text: str) -> _SplitAddress:
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = urlsplit("")
    if not text.startswith(SCHEME) or parts.fragment:
        raise BadAddress(f"this is no address of object storage: write it like {SHAPE}")
    if "@" in parts.netloc:
        raise BadAddress("credentials do not belong into an address: name a file with them by credentials=/FILE")
    return _SplitAddress(parts.netloc, parts.path, parts.query)


def _options(query: str) -> dict[str, str]:
    """Return what stands behind the question mark. Raises BadAddress; the text names no value, which may be secret."""
    known = ("endpoint", "region", "credentials", "ca", "bucket-in", "plain-http")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=len(known))
    except ValueError:
        raise BadAddress(f"what follows the ? is not of the form NAME=VALUE&...: write it like {SHAPE}") from None
    options = dict(pairs)
    if len(options) != len(pairs):
        raise BadAddress("an option of the address is there twice")
    for name in options:
        if name not in known:
            raise BadAddress(f"option {name[:40]!r} of the address is unknown: there are {', '.join(known)}")
    return options


def _chosen(options: dict[str, str], name: str, choices: tuple[str, str]) -> bool:
    """Say whether an option has the second of its values. Raises BadAddress."""
    value = options.get(name, choices[0])
    if value not in choices:
        raise BadAddress(f"{name}={value[:40]!r}: it is {' or '.join(choices)}")
    return value == choices[1]


def _file(options: dict[str, str], name: str) -> Path | None:
    """Return a file that an option names. Raises BadAddress."""
    if name not in options:
        return None
    path = Path(options[name])
    if not path.is_absolute():
        raise BadAddress(f"{name}: write the whole path of the file, like {name}=/etc/novacron/{name}")
    return path


def _endpoint(text: str | None, *, plain_is_allowed: bool) -> str | None:
    """Return a server's URL without a slash at its end. Raises BadAddress."""
    if text is None:
        return None
    shape = "write it like endpoint=https://s3.example.net:9000"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise BadAddress(f"the endpoint is no URL: {shape}") from None
    if "@" in parts.netloc:
        raise BadAddress(f"credentials do not belong into the endpoint: {shape}")
    if parts.scheme not in ("http", "https") or not host or parts.path.strip("/") or parts.query or parts.fragment:
        raise BadAddress(f"the endpoint is no URL of a server: {shape}")
    if parts.scheme == "http" and not plain_is_allowed and not _is_loopback(host):
        raise BadAddress(
            f"the endpoint {host} is asked without TLS: write https://, or allow that with plain-http=yes in a network "
            "that nobody else reads"
        )
    literal = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{literal}" + ("" if port is None else f":{port}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(path: Path, option: str) -> str:
    """Return what is in a small file of text. Raises BadAddress."""
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX).decode()
    except OSError as error:
        raise BadAddress(f"{option}: {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadAddress(f"{option}: {path} is no file of text") from None


class _AwsJson(msgspec.Struct):
    """Credentials as AWS's tools print them."""

    key: str = msgspec.field(name="AccessKeyId")
    secret: str = msgspec.field(name="SecretAccessKey")
    token: str | None = msgspec.field(name="SessionToken", default=None)


def _credentials_in(path: Path) -> S3Credentials:
    """Read credentials from a file, either of AWS's forms. Raises BadAddress, whose text shows nothing of the file."""
    text = _read(path, "credentials")
    if private_file.readable_by_others(path):
        raise BadAddress(f"credentials: every user of this host can read {path}: chmod 600 it, and replace them")
    if text.lstrip().startswith("{"):
        try:
            found = msgspec.json.decode(text, type=_AwsJson)
        except msgspec.MsgspecError:
            raise BadAddress(f"credentials: {path} is JSON without AccessKeyId and SecretAccessKey") from None
        return S3Credentials(found.key, found.secret, found.token)
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text)
        profile = parser[PROFILE]
        return S3Credentials(
            profile["aws_access_key_id"], profile["aws_secret_access_key"], profile.get("aws_session_token")
        )
    except (configparser.Error, KeyError):
        raise BadAddress(
            f"credentials: {path} has no section [{PROFILE}] with aws_access_key_id and aws_secret_access_key"
        ) from None
