"""``novacron server``: the control plane of one installation, or one replica of it."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import ipaddress
import os
import signal
import socket
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server as Granian

from novacron import pki
from novacron.api.app import create_app
from novacron.api.cache import Cache
from novacron.api.context import Services
from novacron.control.loop import Controllers
from novacron.model import limits
from novacron.model.errors import InvalidInput
from novacron.server.link import Link
from novacron.store import tokens
from novacron.store.database import LOST, Database
from novacron.store.feed import Feed, Snapshot
from novacron.telemetry import logs
from novacron.telemetry.metrics import Metrics

log = logs.get(__name__)

FEED_RETRY_S = 0.5
START_TRIES_MAX = 60


class Settings(msgspec.Struct, frozen=True):
    """How one server is set up."""

    database_url: str
    state_dir: Path
    host: str = "127.0.0.1"
    port: int = 7443
    link_port: int = 7444
    advertise: str | None = None
    """Address or name by which nodes and users reach this server; ``host`` if not given."""
    fence: Path | None = None
    """Program that cuts a node off, given its name."""
    cli_config: Path | None = None
    """Where the first start writes the administrator's CLI settings; None writes none."""

    @property
    def public_host(self) -> str:
        return self.advertise or self.host

    def url(self, port: int) -> str:
        host = self.public_host
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(host).version == 6:
                host = f"[{host}]"
        return f"https://{host}:{port}"


async def _open_database(url: str) -> Database:
    for attempt in range(1, START_TRIES_MAX + 1):
        try:
            return await Database.open(url)
        except (asyncpg.ClientConfigurationError, ValueError) as error:
            raise InvalidInput(
                str(error), field="database", hint="write it like postgresql://user@host/novacron"
            ) from None
        except (asyncpg.PostgresError, *LOST) as error:
            if attempt == START_TRIES_MAX:
                raise
            log.warning("waiting for the database", error=str(error), attempt=attempt)
            await asyncio.sleep(1)
    raise AssertionError("unreachable")


async def _follow(settings: Settings, cache: Cache, controllers: Controllers, link: Link, metrics: Metrics) -> None:
    while True:
        try:
            async for item in Feed(settings.database_url, limits.EVENTS_KEPT_IN_MEMORY).batches():
                if isinstance(item, Snapshot):
                    await cache.reset(item)
                    link.resync()
                    changes = item.batch.changes
                else:
                    await cache.apply(item)
                    changes = item.changes
                for change in changes:
                    controllers.changed(change)
                    link.changed(change)
                    if change.kind == "migration":
                        metrics.migrations.observe(change.key, change.body)
        except (asyncpg.PostgresError, *LOST) as error:
            cache.lost()
            log.warning("the change feed is away", error=str(error) or type(error).__name__)
            await asyncio.sleep(FEED_RETRY_S)


async def _welcome(settings: Settings, database: Database, authority: pki.Authority) -> None:
    async with database.transaction() as connection:
        secret = await tokens.first(connection)
        if secret is None:
            return
        if settings.cli_config is not None:
            config = {"url": settings.url(settings.port), "token": secret, "ca": authority.pem.decode()}
            pki.write_secret(settings.cli_config, msgspec.json.format(msgspec.json.encode(config)))
    print(f"administrator token (shown once, only its hash is kept): {secret}", flush=True)
    if settings.cli_config is not None:
        print(f"CLI settings of user {getpass.getuser()} are in {settings.cli_config}", flush=True)


def _check_free(settings: Settings) -> None:
    """Raise InvalidInput when a port is taken: the HTTP server would share it silently."""
    for field, port in (("port", settings.port), ("link-port", settings.link_port)):
        try:
            socket.create_server((settings.host, port)).close()
        except OSError as error:
            raise InvalidInput(
                f"can't listen on {settings.host}:{port}: {error.strerror}",
                field=field,
                hint=f"end what uses it, or name another with --{field}",
            ) from None


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _check_free(settings)
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority = pki.Authority.open(settings.state_dir)
    hosts = list(dict.fromkeys([settings.public_host, "localhost", "127.0.0.1", socket.gethostname()]))
    certificate, key = authority.issue_server(settings.state_dir, hosts)
    database = await _open_database(settings.database_url)
    try:
        await _welcome(settings, database, authority)
        cache, link = Cache(), Link(database, authority)
        controllers = Controllers(database, link.foresee, settings.fence)
        metrics = Metrics(lambda: [entry.body for entry in cache.all("migration").values()])
        context = pki.mutual_tls(settings.state_dir / "ca.crt", certificate, key, server=True)
        services = Services(
            database, cache, authority, link, metrics, settings.url(settings.port), settings.url(settings.link_port)
        )
        async with link.listen(settings.host, settings.link_port, context):
            work = [
                asyncio.create_task(_follow(settings, cache, controllers, link, metrics), name="feed"),
                asyncio.create_task(controllers.run(), name="controllers"),
                asyncio.create_task(_http(settings, services, certificate, key).serve(), name="http"),
            ]
            try:
                stopped = asyncio.create_task(stop.wait())
                log.info("serving", api=settings.url(settings.port), link=settings.url(settings.link_port))
                done, _ = await asyncio.wait([*work, stopped], return_when=asyncio.FIRST_COMPLETED)
                for task in done - {stopped}:
                    task.result()
            finally:
                for task in work:
                    task.cancel()
                await asyncio.wait(work, timeout=5)
    finally:
        await database.close()


def _http(settings: Settings, services: Services, certificate: Path, key: Path) -> Any:
    return Granian(
        create_app(services),
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        http=HTTPModes.auto,
        backlog=1024,
        ssl_cert=certificate,
        ssl_key=key,
        log_enabled=False,
        http1_settings=HTTP1Settings(header_read_timeout=10_000),
    )


def run(settings: Settings) -> None:
    """Run a server in this process until it is told to stop. Raises NovaError when it can't begin."""
    import uvloop

    logs.set_up("server", os.environ.get("NOVACRON_LOG_LEVEL", "info"))
    uvloop.run(serve(settings))
