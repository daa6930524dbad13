"""The services that every route needs, in one object of the application's state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection

from novacron.api.access.live_calls import LiveCalls
from novacron.api.access.oidc import Oidc
from novacron.api.access.passwords import KnownBrowsers, Passwords
from novacron.api.access.recorder import Recorder
from novacron.api.access.second_factors import SecondFactorChecks
from novacron.api.read_model.catalogues import Catalogues
from novacron.api.read_model.principals import Caller
from novacron.api.read_model.vm_usage import VmUsage
from novacron.api.read_model.watch_cache import Cache
from novacron.key_ring import KeyRing
from novacron.model.console import ConsoleLine
from novacron.model.event import ImageCopy
from novacron.model.key import KeyName
from novacron.model.probe import MoveForeseen, PathMeasured
from novacron.model.token import Lifetimes
from novacron.pki import Authority
from novacron.platform_key import PlatformKeys
from novacron.store.create_groups import CreateGroups
from novacron.store.database import Database
from novacron.store.fleet_index import FleetIndex
from novacron.store.keys import NewKey
from novacron.telemetry.metrics import Metrics
from novacron.wire.questions import Question

A = TypeVar("A")


class ConsoleStream(Protocol):
    """An open console, or port of a guest, as routes use it."""

    reason: str

    async def read(self) -> bytes | None: ...
    async def room(self) -> None: ...
    async def write(self, data: bytes) -> None: ...
    async def close(self) -> None: ...


class Agents(Protocol):
    """The server's end of the agent link, as routes use it."""

    async def open_console(self, node: str, vm: str, kind: ConsoleLine, port: int = 0) -> ConsoleStream: ...
    async def ask(self, node: str, question: Question[A]) -> A: ...
    async def connected(self) -> list[str]: ...
    async def probe(self, source: str, target: str, seconds: float) -> PathMeasured: ...
    async def estimate_move(self, vm: str, source: str, target: str) -> MoveForeseen: ...
    async def copy_image(self, name: str, source: str | None, target: str, actor: str) -> ImageCopy: ...


class Services(msgspec.Struct):
    """What the routes work with."""

    database: Database
    creates: CreateGroups
    cache: Cache
    fleet: FleetIndex
    authority: Authority
    keys: KeyRing
    new_key: Callable[[KeyName, int], NewKey]
    """Makes another generation of a key."""
    agents: Agents
    metrics: Metrics
    recorder: Recorder
    passwords: Passwords
    browsers: KnownBrowsers
    oidc: Oidc | None
    live: LiveCalls
    api_url: str
    link_url: str
    lifetimes: Lifetimes
    log_level: Path
    """File with the log level of this server's processes."""
    drain_limit_s: int
    """After how many seconds a drain fails for which no other limit was given."""
    second_factors: SecondFactorChecks
    platform_keys: PlatformKeys
    catalogues: Catalogues
    usage: VmUsage
    trust: Callable[[], str]
    """Returns whom clients of the API have to trust (PEM); empty: whom their machines trust. Raises Unavailable."""


ApiRequest = Request[Caller, str, Any]


def services(connection: ASGIConnection[Any, Any, Any, Any]) -> Services:
    context: Services = connection.app.state.services
    return context
