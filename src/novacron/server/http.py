"""The part of a server that answers people: cache, routes and HTTP server. One process has it beside the agents' links
and the controllers; workers have nothing else."""

from __future__ import annotations

import asyncio
import functools
import gc
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import msgspec
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings, HTTP2Settings
from granian.server.embed import Server as Granian

from novacron import pki
from novacron.api.access.client_address import ClientAddresses
from novacron.api.access.context import Agents, Services
from novacron.api.access.live_calls import LiveCalls
from novacron.api.access.oidc import Oidc
from novacron.api.access.passwords import KnownBrowsers, Passwords
from novacron.api.access.recorder import Recorder
from novacron.api.access.second_factors import SecondFactorChecks
from novacron.api.access.shared_counters import Shared
from novacron.api.app import create_app
from novacron.api.edge.admission import Admission
from novacron.api.edge.rate_limits import Rates
from novacron.api.edge.shared_limits import share_rates
from novacron.api.edge.web_ui import WebUi
from novacron.api.read_model.catalogues import Catalogues
from novacron.api.read_model.vm_usage import VmUsage
from novacron.api.read_model.watch_cache import Cache
from novacron.api.routes.metrics import seen
from novacron.key_ring import KeyRing
from novacron.model import limits
from novacron.model.errors import MALFORMED, InvalidInput
from novacron.model.key import KeyName
from novacron.model.oidc import Provider
from novacron.platform_key import PlatformKeys
from novacron.server import certificates, second_factors
from novacron.server.connections import IdleConnections, most_connections
from novacron.server.keys import KeyFollower
from novacron.server.settings import ServerSettings
from novacron.store.create_groups import CreateGroups
from novacron.store.database import LOST, Database
from novacron.store.feed import Batch, Change, Feed, FeedSnapshot
from novacron.store.fleet_index import FleetIndex
from novacron.supervise import RESTARTS, Rarely, supervise
from novacron.telemetry import logs, process
from novacron.telemetry.declared import SERVERS
from novacron.telemetry.metrics import Metrics
from novacron.telemetry.shared import Processes
from novacron.telemetry.values import begin, counter, gauge, histogram

log = logs.get(__name__)

FEED_RETRY_S = 0.5
GC_THRESHOLDS = 10_000, 20, 1000
"""Young objects are looked through often, all of them hardly ever: what the cache holds is in no cycle."""
LISTEN_TRIES, LISTEN_AGAIN_S, IN_USE = 30, 0.5, "Address already in use"
BACKLOG = 1024
"""Connections that wait to be accepted."""
H2_STREAMS_MAX, H2_HEADER_BYTES_MAX = 100, 64 * 1024
"""Of one HTTP/2 connection at once, and of one request in it."""
LEAVE_S_MAX = 10.0
"""How long requests may take that are worked on when the server ends."""

Heard = Callable[[Change], None]


class Front:
    """Answers people. ``changed`` hears of every change, ``resync`` when some may have been missed, ``certified`` of
    new certificates."""

    def __init__(
        self, settings: ServerSettings, database: Database, authority: pki.Authority, keys: KeyFollower,
        agents: Agents,
    ) -> None:  # fmt: skip
        self._feed = Feed(settings.database_url, limits.EVENTS_KEPT_IN_MEMORY)
        self.cache, self.fleet = Cache(settings.reads_away_s, self._feed.lag_s), FleetIndex()
        self.changed: list[Heard] = [self.fleet.changed]
        self.resync: list[Callable[[], None]] = [self.fleet.clear]
        self.certified: list[Callable[[], None]] = [authority.reload]
        self._settings = settings
        self._certificates = (settings.state_dir / "ca.crt", *settings.own_certificate, *settings.api_certificate)
        self._shown = certificates.marks(settings.api_certificate)
        self._processes = Processes(settings.state_dir / "metrics")
        self._metrics = Metrics(self._processes, lambda: seen(self.cache))
        self._log_now = Rarely()
        self._measure(database)
        self._live = LiveCalls(self.cache.callers)
        self._recorder = Recorder(database, self._live.in_progress)
        self._shared, self._rates = Shared(settings.redis_url), Rates(settings.rates)
        self._second_factors, self._database = _second_factors(settings, keys.ring), database
        services = Services(
            database, CreateGroups(database), self.cache, self.fleet, authority, keys.ring, keys.next_generation,
            agents, self._metrics, self._recorder, Passwords(self._shared),
            KnownBrowsers(lambda: keys.ring.accepted(KeyName.SEAL, "browsers that users have logged in with")),
            _oidc(settings, keys.ring, database), self._live, settings.url(settings.port),
            settings.url(settings.link_port), settings.lifetimes, settings.log_level, settings.drain_limit_s,
            self._second_factors,
            PlatformKeys.of(settings.platform_key, settings.former_platform_key),
            _catalogues(settings),
            VmUsage(agents.ask),
            functools.partial(certificates.trust, settings, authority),
        )  # fmt: skip
        pages = WebUi(create_app(services), {"oidc": services.oidc is not None})
        self._admission = Admission(pages, services, self._rates, settings.proxies)
        self._connections = IdleConnections(
            settings.port, most_connections(settings.connections_max), self._admission.requests,
            ClientAddresses(settings.proxies).is_proxy,
        )  # fmt: skip
        self.certified.append(self._admission.certified)
        self._http = _granian(settings, self._admission, *settings.api_certificate)

    async def run(self) -> None:
        """Answer until cancelled, or until ``leave`` is over."""
        works: dict[str, Callable[[], Awaitable[None]]] = {
            "feed": self._follow,
            "recorder": self._recorder.run,
            "live-calls": self._live.run,
            "connections": self._connections.run,
            "second-factors": lambda: second_factors.keep_sealed(self._second_factors, self._database),
            "rates": lambda: share_rates(self._shared, self._rates),
            "metrics": self._processes.run,
            "process": process.watch,
            "certificates": lambda: certificates.follow(self._certificates, self.use_certificates),
            "log-level": lambda: logs.follow(self._settings.log_level, logs.level()),
        }
        async with asyncio.TaskGroup() as group:
            others = [group.create_task(supervise(name, work), name=name) for name, work in works.items()]
            try:
                await self._serve()
            finally:
                for task in others:
                    task.cancel()
        await self._shared.close()

    async def _serve(self) -> None:
        """Listen and answer until stopped. A connection that leaves from the API's port, which a system may choose for
        it while no server runs, keeps the port for as long as it lasts. Raises RuntimeError."""
        for tries_left in range(LISTEN_TRIES, 0, -1):
            try:
                await self._http.serve()
            except RuntimeError as error:
                if IN_USE not in str(error) or tries_left == 1:
                    raise
            else:
                return
            log.warning("the API's port is in use", port=self._settings.port, again_s=LISTEN_AGAIN_S)
            await asyncio.sleep(LISTEN_AGAIN_S)

    async def leave(self) -> None:
        """Say for a while that this server is not ready, then take no more requests, and finish those that are here."""
        self._admission.leaving = True  # the load balancer sends requests elsewhere before this server ends
        await asyncio.sleep(self._settings.leave_s)
        self.stop()

    def stop(self) -> None:
        """Take no more requests, let go of the port, and finish the requests that are here."""
        self._http.stop()

    def _measure(self, database: Database) -> None:
        """Say where that is to be read which is asked for when somebody looks."""
        begin(SERVERS)
        gauge("novacron_feed_lag_seconds").read = lambda: {(): self._feed.lag_s()}
        gauge("novacron_api_followers").read = lambda: {(): self.cache.followers()}
        gauge("novacron_api_requests_in_progress").read = lambda: {(): self._admission.in_progress}
        gauge("novacron_database_connections").read = database.connections
        gauge("novacron_database_connections_max").read = lambda: {(): database.connections_max}

    async def _follow(self) -> None:
        """Take changes in until cancelled. After a defect the feed begins anew, with everything."""
        while True:
            try:
                async for item in self._feed.batches():
                    await self._take(item)
            except (asyncpg.PostgresError, *LOST) as error:
                self._lost(error)
                await asyncio.sleep(FEED_RETRY_S)
            except Exception as error:
                self._lost(error)
                raise

    def use_certificates(self) -> None:
        """Take new certificates into use. Raises OSError, ValueError.

        Requests and streams that are open go on; WebSockets end when the certificate that the API shows is another.
        One that was given and can't be used is left until its files change again: the others are not its business.
        """
        for certified in self.certified:
            certified()
        shown = certificates.marks(self._settings.api_certificate)
        if shown != self._shown:
            try:
                certificates.check_given(self._settings)
            except InvalidInput as error:
                log.error("the new certificate for the API can't be used", error=str(error), hint=error.hint)
                return
            self._shown = shown
            self._http.reload()
        log.info("new certificates are in use")

    def _lost(self, error: Exception) -> None:
        self.cache.lost()
        counter("novacron_feed_losses_total").add()
        log.warning("the change feed is away", error=str(error) or type(error).__name__)

    async def _take(self, item: FeedSnapshot | Batch) -> None:
        began = time.perf_counter()
        if isinstance(item, FeedSnapshot):
            gc.unfreeze()
            await self.cache.reset(item)
            _keep_what_is_here()
            for resync in self.resync:
                resync()
            changes = item.batch.changes
        else:
            await self.cache.apply(item)
            changes = item.changes
        counter("novacron_feed_batches_total").add()
        histogram("novacron_feed_apply_duration_seconds").observe(time.perf_counter() - began)
        for change in changes:
            counter("novacron_feed_changes_total").add(change.kind)
            for heard in self.changed:
                self._tell(heard, change)

    def _tell(self, heard: Heard, change: Change) -> None:
        """Tell one listener of a change; a defect met with one object holds up neither the next nor the others."""
        try:
            heard(change)
        except Exception:
            RESTARTS.add("change")
            if self._log_now.due(change.kind):
                log.exception("defect while a change was taken in", kind=change.kind, key=change.key)


def _keep_what_is_here() -> None:
    """Keep the collector of cycles from what stays for long: looking through all of it would hold up every request."""
    gc.set_threshold(*GC_THRESHOLDS)
    gc.collect()
    gc.freeze()


def _second_factors(settings: ServerSettings, keys: KeyRing) -> SecondFactorChecks:
    chosen = settings.second_factors
    accepted = functools.partial(keys.accepted, KeyName.FACTOR, "second factors")
    return SecondFactorChecks(accepted, chosen.origin or settings.url(settings.port), chosen.required_of)


def _oidc(settings: ServerSettings, keys: KeyRing, database: Database) -> Oidc | None:
    """Return the provider of logins, if there is one. Raises InvalidInput."""
    if settings.oidc is None:
        return None
    try:
        provider = msgspec.json.decode(settings.oidc.read_bytes(), type=Provider)
        back = f"{settings.url(settings.port)}/api/v1/oidc/callback"
        seals = functools.partial(keys.accepted, KeyName.SEAL, "logins through a provider")
        return Oidc(provider, back, seals, database)
    except (OSError, *MALFORMED) as error:
        raise InvalidInput(f"{settings.oidc}: {error}", field="oidc", hint="see docs/how-to/access.md") from error


def _catalogues(settings: ServerSettings) -> Catalogues:
    """Raises InvalidInput."""
    try:
        return Catalogues(settings.catalogues)
    except OSError as error:
        raise InvalidInput(f"{settings.catalogues.ca}: {error}", field="catalogue-ca") from error


def _granian(settings: ServerSettings, admission: Admission, certificate: Path, key: Path) -> Granian:
    return Granian(
        admission,
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        http=HTTPModes.auto,
        backlog=BACKLOG,
        backpressure=most_connections(settings.connections_max),
        ssl_cert=certificate,
        ssl_key=key,
        log_enabled=False,
        http1_settings=HTTP1Settings(header_read_timeout=10_000),
        http2_settings=HTTP2Settings(max_concurrent_streams=H2_STREAMS_MAX, max_headers_size=H2_HEADER_BYTES_MAX),
    )
