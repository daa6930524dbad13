"""A server's certificates while it runs: renewed before they end, and taken into use by all of its processes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from novacron import pki
from novacron.model.errors import Unavailable
from novacron.server.settings import ServerSettings
from novacron.store import events
from novacron.store.database import Database
from novacron.supervise import Rarely
from novacron.telemetry import logs

log = logs.get(__name__)

RENEWAL_CHECK_S = 3600.0
LOOK_S = 1.0


def hosts(settings: ServerSettings) -> list[str]:
    """Return the names and addresses by which a server is reached, as its certificate has them."""
    return list(dict.fromkeys([settings.public_host, "localhost", "127.0.0.1", socket.gethostname()]))


def check_given(settings: ServerSettings) -> None:
    """Look at the certificate that was given for the API, if one was, and log what is wrong with it. Raises
    InvalidInput where nobody could be served with it."""
    given = settings.given_certificate
    for trouble in [] if given is None else given.check(settings.public_host):
        log.error("users can't verify the API", why=trouble)


def trust(settings: ServerSettings, authority: pki.Authority) -> str:
    """Return whom clients of the API have to trust (PEM); empty: whom their machines trust. Raises Unavailable."""
    given = settings.given_certificate
    try:
        return authority.pem.decode() if given is None else given.trust()
    except OSError as error:
        raise Unavailable(
            f"the certificate authority of the API's certificate can't be read: {error}",
            hint="restore the file of --tls-authority",
        ) from None


def expiries(settings: ServerSettings) -> dict[tuple[str, ...], float]:
    """Return when each certificate of this server ends; one that can't be read now, such as while it is replaced, is
    left out."""
    files = {"authority": settings.state_dir / "ca.crt", "server": settings.own_certificate[0]}
    if settings.given_certificate is not None:
        files["api"] = settings.given_certificate.certificate
    # Those of a member of the database's cluster on this machine; where they can't be read: novacron doctor.
    tls = settings.state_dir.parent / "postgres" / "tls"
    files |= {"database-authority": tls / "ca.crt", "database": tls / "server.crt"}
    files |= {"etcd-authority": tls / "etcd-ca.crt", "etcd-client": tls / "etcd.crt"}
    ends = dict[tuple[str, ...], float]()
    for name, file in files.items():
        with contextlib.suppress(OSError, ValueError):
            ends[name,] = pki.expires_at_s(file.read_bytes())
    return ends


def renew(authority: pki.Authority, directory: Path, hosts: list[str]) -> list[str]:
    """Renew which of the authority's and the server's certificates it is time for; return which. Raises OSError."""
    renewed = ["authority"] if authority.renew() else []
    if pki.due("server", (directory / "server.crt").read_bytes(), time.time()):
        authority.reissue_server(directory, hosts)
        renewed.append("server")
    return renewed


async def keep(settings: ServerSettings, authority: pki.Authority, database: Database) -> None:
    """Renew certificates in time, until cancelled."""
    while True:
        try:
            for kind in await asyncio.to_thread(renew, authority, settings.state_dir, hosts(settings)):
                await _record(settings, database, "CertificateRenewed", f"the {kind}'s certificate was renewed")
                log.info("a certificate was renewed", certificate=kind)
        except (OSError, ValueError) as error:
            hint = f"make {settings.state_dir} readable and writable for the server, with free space"
            log.error("can't renew certificates", error=str(error), hint=hint)
            await _record(settings, database, "CertificateNotRenewed", f"can't renew certificates: {error}; {hint}")
        await asyncio.sleep(RENEWAL_CHECK_S)


async def _record(settings: ServerSettings, database: Database, reason: str, message: str) -> None:
    host = settings.public_host
    async with database.transaction() as connection:
        await events.record(connection, events.NewEvent("server", host, host, reason, message))


async def follow(files: Sequence[Path], changed: Callable[[], None]) -> None:
    """Call ``changed`` whenever one of the files is another, until cancelled; again when it could not take them."""
    seen, log_now = marks(files), Rarely()
    while True:
        await asyncio.sleep(LOOK_S)
        current = marks(files)
        if current == seen:
            continue
        try:
            changed()
            seen = current
        except (OSError, ValueError) as error:
            if log_now.due(str(error)):
                log.error("new certificates can't be used", error=str(error), retry_s=LOOK_S)


def marks(files: Sequence[Path]) -> list[tuple[int, int]]:
    """Return what tells these files from those that replace them."""
    return [(status.st_ino, status.st_mtime_ns) for status in (file.stat() for file in files if file.exists())]
