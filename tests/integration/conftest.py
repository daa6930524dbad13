"""How tests talk to the API, and VMs that clean up after themselves."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import urllib3
import zstandard

from lab.hosts import lab
from lab.observers import Collector
from lab.platform import Platform, PlatformOptions, default_cache, open_directory, platform, until
from novacron import pki
from novacron.client import Client, NotFoundError
from novacron.dwcp.listener import Listener
from tests.support.dwcp import Ends
from tests.support.readable import nobody_reads
from tests.support.s3 import S3Server, running_s3_server
from tests.support.vm_backups import new_repository

__all__ = ["new_repository"]
_numbers = itertools.count(1)


class Answer(NamedTuple):
    status: int
    headers: Any
    body: Any

    @property
    def problem(self) -> dict[str, Any]:
        """The problem document; fails unless the answer is one, whole and in its media type."""
        assert self.headers["content-type"].startswith("application/problem+json"), (self.status, self.body)
        assert {"type", "title", "status", "code", "detail", "instance"} <= set(self.body)
        assert self.body["status"] == self.status
        assert "Traceback" not in self.body["detail"]
        details: dict[str, Any] = self.body
        return details


class Api:
    """Raw requests, good and bad."""

    def __init__(self, client: Client) -> None:
        config = client.config
        self.url, self.token = config.url, config.token
        self._pool = urllib3.PoolManager(ssl_context=ssl.create_default_context(cadata=config.ca))

    def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        token: str | None = "",
        **headers: str,
    ) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["Authorization"] = f"Bearer {token or self.token}"
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        answer = self._pool.request(method, self.url + path, body=data, headers=sent, retries=False, timeout=70)
        text = answer.data
        if answer.headers.get("content-encoding") == "zstd":  # this client knows the others
            text = zstandard.ZstdDecompressor().decompress(text)
        is_json = "json" in answer.headers.get("content-type", "")
        return Answer(answer.status, answer.headers, json.loads(text) if text and is_json else text.decode())


@pytest.fixture(scope="session")
def api(site: Platform) -> Api:
    return Api(site.client)


@pytest.fixture
def new_name() -> Callable[[], str]:
    return lambda: f"t{next(_numbers)}"


@pytest.fixture
def new_vm(site: Platform, new_name: Callable[[], str]) -> Iterator[Callable[..., dict[str, Any]]]:
    """Create VMs; all are deleted afterwards, and nothing of them may be left."""
    ids: list[str] = []

    def create(**fields: Any) -> dict[str, Any]:
        vm = site.client.create_vm(**{"name": new_name(), "image": "tiny", "memory_mib": 128, **fields})
        ids.append(vm["id"])
        return vm

    yield create
    for id in ids:
        with contextlib.suppress(NotFoundError):  # the test deleted it
            site.client.delete("vms", id)
    until(lambda: not set(ids) & {vm["id"] for vm in site.client.list("vms")}, "the test's VMs are gone")
    site.until_clean()


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    with Collector().running() as running:
        yield running


@contextmanager
def sending(collector: Collector, share: float, prefix: str, images: Path, lacks: list[str]) -> Iterator[Platform]:
    """Run a platform of two hosts whose processes send a share of their traces to a collector."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_TRACES_SAMPLER_ARG": str(share)}
    options = PlatformOptions(environment=environment, reachable_ports=(collector.port,))
    with (
        open_directory(f"{prefix}-") as directory,
        lab(f"{prefix}{os.getpid()}", default_cache(), namespaces=not lacks) as hosts,
        platform(directory / "p", hosts, images, options) as running,
        nobody_reads(running),
    ):
        yield running


@pytest.fixture(scope="session")
def watched(images: Path, lacks: list[str], collector: Collector) -> Iterator[Platform]:
    """A platform that sends a tenth of its traces."""
    with sending(collector, 0.1, "nvt", images, lacks) as running:
        yield running


@pytest.fixture(scope="session")
def moved(watched: Platform) -> dict[str, Any]:
    """A VM that runs, and has moved."""
    vm = watched.client.create_vm(name="web", image="tiny", memory_mib=128, node="host-a")
    watched.wait_state(vm["id"], "running")
    until(lambda: "READY" in watched.console_log(vm, "host-a") or "novacron" in watched.console_log(vm, "host-a"), "up")
    watched.cli("vm", "migrate", "web", "--to", "host-b")
    watched.wait_vm(
        vm["id"], lambda current: current["node"] == "host-b" and current["status"]["state"] == "running", "it moved"
    )
    moved_vm: dict[str, Any] = watched.client.get("vms", vm["id"])
    return moved_vm


@pytest.fixture(scope="session")
def asked(watched: Platform) -> Api:
    return Api(watched.client)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    """Certificates of the nodes at both ends of a DWCP session."""
    return Ends(tmp_path_factory.mktemp("ends"))


@pytest.fixture
async def listening(ends: Ends) -> AsyncIterator[tuple[Listener, int]]:
    """Listen as node b; yield the listener and its port."""
    listener = Listener(ends.tls("b", server=True), pki.peer_name)
    async with listener.listen("127.0.0.1", 0) as port:
        yield listener, port


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 server."""
    with open_directory("nvs3-") as directory, running_s3_server(directory / "s3") as server:
        yield server
