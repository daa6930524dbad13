"""A real S3 server, SeaweedFS, on loopback: started, killed, paused and asked as a test needs it."""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from lab.platform import until
from lab.ports import free_ports
from novacron import pki
from tests.support.stopped import standing_still

REGION = "us-east-1"
START_S_MAX = 60.0
GRPC_PORT_DISTANCE = 10_000
"""The server also listens on each of its ports and this."""


class Credentials(NamedTuple):
    """Who asks."""

    key: str
    secret: str

    def file(self, path: Path) -> Path:
        """Write them as a file of AWS's form that only its owner can read."""
        path.touch(mode=0o600)
        path.write_text(f"[default]\naws_access_key_id = {self.key}\naws_secret_access_key = {self.secret}\n")
        return path

    def environment(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_DEFAULT_REGION": REGION}


ADMIN = Credentials("ADMINKEY0123456789", "an-admin-s-test-secret")
NODE = Credentials("NODEKEY0123456789", "a-node-s-test-secret")
"""Has the rights that a bucket's policy gives it."""


def _free_ports(count: int) -> list[int]:
    """Return ports that are free, and whose neighbours for gRPC are possible."""
    found: list[int] = []
    while len(found) < count:
        found += [port for port in free_ports(count) if port + GRPC_PORT_DISTANCE < 1 << 16]
    return found[:count]


class S3Server:
    """The server; its buckets outlive its processes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.data.mkdir(parents=True)
        identities = [
            {"name": name, "credentials": [{"accessKey": who.key, "secretKey": who.secret}], "actions": actions}
            for name, who, actions in (("admin", ADMIN, ["Admin"]), ("node", NODE, list[str]()))
        ]
        (directory / "s3.json").write_text(json.dumps({"identities": identities}))
        (directory / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")  # of a new bucket
        self._ports = _free_ports(5)
        authority = pki.Authority.open(directory / "ca")
        self._certificate, self._key = authority.issue_server(directory / "ca", ["127.0.0.1"])
        self.ca = directory / "ca/ca.crt"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports[3]}"

    @property
    def tls_endpoint(self) -> str:
        return f"https://127.0.0.1:{self._ports[4]}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        weed = Path(sys.executable).parent / "weed"
        master, volume, filer, s3, tls = self._ports
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [weed, "server", f"-dir={self.data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-master.port={master}",
                 f"-volume.port={volume}", f"-filer.port={filer}", "-s3", f"-s3.port={s3}", f"-s3.port.https={tls}",
                 f"-s3.cert.file={self._certificate}", f"-s3.key.file={self._key}", "-s3.port.iceberg=0",
                 "-s3.port.lance=0", "-s3.iam=false", f"-s3.config={self.directory / 's3.json'}",
                 f"-filer.localSocket={self.directory / 'filer'}", f"-s3.localSocket={self.directory / 's3'}",
                 "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=100",
                 "-volume.preStopSeconds=0"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory,
            )  # fmt: skip
        until(self._answers, "the S3 server answers", START_S_MAX)

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, (self.directory / "log").read_text()[-2000:]
        try:
            return self.ask("GET", "/").status_code == 200 and self._stores()
        except httpx.HTTPError:
            return False

    def _stores(self) -> bool:
        """Say whether it can store something yet, too."""
        self.ask("PUT", "/probe")
        return self.ask("PUT", "/probe/object", b"x").status_code == 200

    def kill(self) -> None:
        """End it as a crash does."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Let it answer nothing for a while, and close no connection."""
        assert self.process is not None
        with standing_still([self.process.pid]):
            yield

    def new_bucket(self, name: str, *, object_lock: bool = False) -> str:
        """Have a bucket."""
        headers = {"x-amz-bucket-object-lock-enabled": "true"} if object_lock else {}
        answer = self.ask("PUT", f"/{name}", headers=headers)
        assert answer.status_code in (200, 409), answer.text
        return name

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, who: Credentials = ADMIN
    ) -> httpx.Response:
        """Send a request that is signed; ``path`` with its query."""
        url = self.endpoint + path
        return httpx.request(method, url, content=body, headers=_signed(method, url, body, headers or {}, who))

    def allow(self, bucket: str, policy: dict[str, Any]) -> None:
        """Give a bucket a policy."""
        answer = self.ask("PUT", f"/{bucket}?policy=", json.dumps(policy).encode())
        assert answer.status_code in (200, 204), answer.text


def _signed(method: str, url: str, body: bytes, headers: dict[str, str], who: Credentials) -> dict[str, str]:
    """Return headers with AWS's signature, version 4. ``url`` has nothing that needs an escape."""
    parts, at = urlsplit(url), datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    digest = hashlib.sha256(body).hexdigest()
    sent = {**headers, "host": parts.netloc, "x-amz-content-sha256": digest, "x-amz-date": at}
    names = ";".join(sorted(sent))
    lines = [f"{name}:{sent[name]}" for name in sorted(sent)]
    asked = "\n".join([method, parts.path, parts.query, *lines, "", names, digest])
    scope = f"{at[:8]}/{REGION}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", at, scope, hashlib.sha256(asked.encode()).hexdigest()])
    key = f"AWS4{who.secret}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.digest(key, part.encode(), "sha256")
    credential = f"AWS4-HMAC-SHA256 Credential={who.key}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
    return {**{name: value for name, value in sent.items() if name != "host"}, "authorization": credential}


@contextmanager
def running_s3_server(directory: Path) -> Iterator[S3Server]:
    """Run a server for as long as it is needed. Its data goes with it, so it is not given time to end."""
    server = S3Server(directory)
    try:
        server.start()
        yield server
    finally:
        server.kill()
