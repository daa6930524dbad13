"""``novacron server``: the control plane of one installation, or one replica of it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import getpass
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg

from novacron import context_file, listening, pki, private_file, service_manager
from novacron.audit_chain.heads import SigningKey
from novacron.control.audit_chain import AuditChain
from novacron.control.controller import Controllers
from novacron.model.errors import InvalidInput, NovaError
from novacron.model.network import Protocol
from novacron.platform_key import PlatformKeys
from novacron.server import audit_sinks, certificates, relay, workers
from novacron.server.database_watch import DatabaseWatch
from novacron.server.http import LEAVE_S_MAX, Front
from novacron.server.keys import AuthorityKeeper, KeyFollower
from novacron.server.link import LinkServer
from novacron.server.settings import LOOPBACK, ServerSettings
from novacron.state_lock import FolderInUse, FolderLock
from novacron.store import statistics, tokens
from novacron.store.database import LOST, Database
from novacron.store.feed import Change
from novacron.supervise import supervise
from novacron.telemetry import logs, traces
from novacron.telemetry.metrics import MigrationMetrics
from novacron.telemetry.shared import Processes
from novacron.telemetry.values import gauge
from novacron.terminal import say

log = logs.get(__name__)

START_TRIES_MAX = 60
READY_POLL_S = 0.1
PORT_FREE_S_MAX = 3.0
"""Within this, workers of a server that was killed let go of its port."""


async def _open_database(url: str, connections: int) -> Database:
    for attempt in range(1, START_TRIES_MAX + 1):
        try:
            return await Database.open(url, connections)
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


async def _welcome(settings: ServerSettings, database: Database, authority: pki.Authority) -> None:
    """Make the first administrator of an installation, and a context of the CLI beside those that there are."""
    context = ""
    async with database.transaction() as connection:
        secret = await tokens.first(connection)
        if secret is None:
            return
        if settings.cli_config is not None:  # before the token counts: it is not lost if this fails
            context, used = keep_context(settings.cli_config, settings, authority, secret)
    if sys.stderr.isatty() or not context:  # a service's log is no place for it, unless it would be lost
        say(f"administrator token (shown once, only its hash is kept): {secret}", err=True, flush=True)
    else:
        say("the administrator's token is in the CLI's settings only", err=True, flush=True)
    if context:
        say(f"CLI settings of user {getpass.getuser()} are in {settings.cli_config}, context {context}",
              err=True, flush=True)  # fmt: skip
        if not used:
            say(f"to work with this installation: novacron context use {context}", err=True, flush=True)


def keep_context(path: Path, settings: ServerSettings, authority: pki.Authority, secret: str) -> tuple[str, bool]:
    """Add a context for an administrator's token to a file; return its name, and whether it is the current one.

    Raises InvalidInput.
    """
    url = settings.url(settings.port)
    name = "local" if settings.public_host in LOOPBACK else settings.public_host.replace(":", ".")
    try:
        with context_file.changing(path) as contexts:
            ca = certificates.trust(settings, authority)
            context = contexts.add_beside(name, context_file.Context(url, secret, ca, authorities=authority.trust_mark))
    except (context_file.SettingsError, OSError) as error:
        raise InvalidInput(
            str(error), field="NOVACRON_CONFIG", hint="fix the file, or choose another with NOVACRON_CONFIG"
        ) from None
    return context, contexts.current == context


async def check_free(settings: ServerSettings) -> None:
    """Raise InvalidInput when a port is taken: the HTTP server would share it silently."""
    for field, port in (("port", settings.port), ("link-port", settings.link_port)):
        until = time.monotonic() + PORT_FREE_S_MAX
        while (error := _cannot_listen(settings.host, port)) is not None:
            if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise InvalidInput(
                    f"can't listen on {settings.host}:{port}: {error.strerror}",
                    field=field,
                    hint=f"stop the program that uses it, or choose another with --{field}",
                )
            await asyncio.sleep(READY_POLL_S)


def _cannot_listen(host: str, port: int) -> OSError | None:
    """Return why nothing can listen there; connections of a killed server keep a port for a minute, and don't count."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        faded = error.errno == errno.EADDRINUSE and (Protocol.TCP, port) not in listening.used_ports()
        return None if faded else error
    return None


async def serve(settings: ServerSettings) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, stop)
    await check_free(settings)
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.umask(private_file.UMASK)
    lock = _lock(settings.state_dir)
    try:
        await _serve(settings, stop)
    finally:
        lock.release()


def _stop(stop: asyncio.Event) -> None:
    service_manager.tell(service_manager.STOPPING)
    stop.set()


def _lock(directory: Path) -> FolderLock:
    """Make sure that one server at a time works with its folder. Raises InvalidInput."""
    try:
        return FolderLock(directory)
    except FolderInUse as error:
        raise InvalidInput(str(error), field="state-dir") from None


async def _serve(settings: ServerSettings, stop: asyncio.Event) -> None:
    certificates.check_given(settings)
    authority = pki.Authority.open(settings.state_dir)
    database = await _open_database(settings.database_url, settings.pool)
    try:
        keys = await KeyFollower.begin(database, settings.state_dir, authority, renew=settings.new_keys)
        keeper = AuthorityKeeper(settings, database, authority, keys)
        certificate, key = await keeper.begin()
        await _welcome(settings, database, authority)
        watch = DatabaseWatch(database, settings.state_dir / "database.mark", lambda: link.wake())
        await watch.begin()
        platform_keys = PlatformKeys.of(settings.platform_key, settings.former_platform_key)
        link = LinkServer(database, authority, keys.ring, mark=lambda: watch.mark, platform_keys=platform_keys)
        ca, audit_chain = settings.state_dir / "ca.crt", _audit_chain(settings)
        context = pki.agent_link_tls(ca, certificate, key)
        Processes(settings.state_dir / "metrics").begin()
        settings.log_level.unlink(missing_ok=True)
        gauge("novacron_certificate_expiry_timestamp_seconds").read = lambda: certificates.expiries(settings)
        front = Front(settings, database, authority, keys, link)
        controllers = Controllers(database, front.fleet, link, audit_chain, settings.fence, settings.lifetimes)
        front.changed += [controllers.changed, link.changed, _count_migrations()]
        front.resync.append(link.resync)
        front.certified += [lambda: pki.use_files(context, ca, certificate, key), link.certified]
        keys.changed.append(link.wake)  # other keys of pages
        keeper.use, keep = front.use_certificates, functools.partial(certificates.keep, settings, authority, database)
        async with (
            link.listen(settings.host, settings.link_port, context),
            relay.listen(settings.relay, link),
        ):
            answering = asyncio.create_task(front.run(), name="front")
            keepers = _keepers(settings, stop)
            work = [
                answering,
                asyncio.create_task(supervise("controllers", controllers.run), name="controllers"),
                asyncio.create_task(supervise("certificates", keep), name="certificates"),
                asyncio.create_task(supervise("database mark", watch.run), name="database-mark"),
                asyncio.create_task(supervise("database lock", watch.be_seen), name="database-lock"),
                asyncio.create_task(supervise("keys", lambda: keys.follow(keeper.step)), name="keys"),
                asyncio.create_task(supervise("statistics", lambda: statistics.watch(database)), name="statistics"),
                asyncio.create_task(supervise("watchdog", lambda: _be_seen(settings, front)), name="watchdog"),
                *keepers,
            ]
            stopped = asyncio.create_task(stop.wait())
            try:
                log.info("serving", api=settings.url(settings.port), link=settings.url(settings.link_port))
                done, _ = await asyncio.wait([*work, stopped], return_when=asyncio.FIRST_COMPLETED)
                for task in done - {stopped}:
                    task.result()
                await front.leave()
                await asyncio.wait([answering, *keepers], timeout=LEAVE_S_MAX)
            finally:
                for task in (*work, stopped):
                    task.cancel()
                await asyncio.wait([*work, stopped], timeout=5)
                await keeper.leave()
        with contextlib.suppress(NovaError, asyncpg.PostgresError, *LOST):
            await watch.end()
    finally:
        await database.close()


def _keepers(settings: ServerSettings, stop: asyncio.Event) -> list[asyncio.Task[None]]:
    """Run the other processes that answer people, until ``stop``."""
    return [
        asyncio.create_task(supervise("workers", lambda: workers.keep(settings, stop)), name="workers")
        for _ in range(settings.workers - 1)
    ]


async def _be_seen(settings: ServerSettings, front: Front) -> None:
    """Tell the service manager once requests are answered, and that this server is alive."""
    while not (front.cache.ready and _answers(settings.host, settings.port)):  # noqa: ASYNC110 (a port tells nobody)
        await asyncio.sleep(READY_POLL_S)
    service_manager.tell(service_manager.READY)
    await service_manager.keep_alive()


def _answers(host: str, port: int) -> bool:
    """Say whether a port of this machine is open."""
    try:
        with socket.create_connection((host, port), READY_POLL_S):
            return True
    except OSError:
        return False


def _audit_chain(settings: ServerSettings) -> AuditChain:
    """Return what chains the audit log. Raises InvalidInput."""
    try:
        key = SigningKey.open(settings.audit_key)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"can't use the key that signs heads of the audit log: {error}", field="state-dir",
                           hint="restore the file, or remove it to have a new key created") from None  # fmt: skip
    return AuditChain(key, settings.public_host, settings.audit.retention_s, audit_sinks.sinks(settings.audit))


def _count_migrations() -> Callable[[Change], None]:
    """Return what counts them: here, for each worker sees them, too."""
    migrations = MigrationMetrics()

    def heard(change: Change) -> None:
        if change.kind == "migration":
            migrations.observe(change.key, change.body)

    return heard


def run(settings: ServerSettings) -> None:
    """Run a server in this process until it is stopped. Raises NovaError when it can't begin."""
    import uvloop

    logs.set_up("server", os.environ.get("NOVACRON_LOG_LEVEL", "info"))
    traces.set_up("server", settings.public_host)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a file
    try:
        uvloop.run(serve(settings))
    finally:
        traces.close()
