"""A server: its settings, its ports, and the settings of the CLI for root."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Mapping

import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from novacron import context_file
from novacron.client.api import config_path
from novacron.local.setup import checks
from novacron.local.setup.flow import Ended, ServiceSetup
from novacron.local.setup.host import SetupFailed
from novacron.local.setup.plan import SetupRequest
from novacron.local.setup.services import SERVER
from novacron.server.settings import LOOPBACK, ServerSettings
from novacron.service_options import STATE_DIR, ServerOptions

EVERYWHERE = "0.0.0.0"
WILDCARDS = (EVERYWHERE, "::")
FILES = STATE_DIR / "server"
ANSWERS_S_MAX, POLL_S, REQUEST_S = 60.0, 0.5, 5.0


class ServerSetup(ServiceSetup[ServerOptions, ServerSettings]):
    """Sets a server up."""

    service = SERVER

    def request(self, given: Mapping[str, object], replace: bool) -> SetupRequest:
        defaults = {"host": EVERYWHERE} if "advertise" in given else {}  # others are to reach it
        return SetupRequest(SERVER, given, defaults, replace)

    def node(self) -> str | None:
        return None

    def settings(self, options: ServerOptions) -> ServerSettings:
        return options.settings(options.database or "", FILES, FILES / "cli.json")

    def database(self, options: ServerOptions) -> str | None:
        return options.database

    def check(self, settings: ServerSettings, now: ServerSettings | None, is_active: bool) -> Iterator[str]:
        own = (now.port, now.link_port) if is_active and now is not None else ()
        ports = {"port": settings.port, "link-port": settings.link_port}
        yield from checks.used_ports(settings.host, ports, own)
        if settings.host in WILDCARDS and settings.advertise is None:
            yield "give the name or address by which nodes and users reach this server: --advertise NAME"

    def end(self, settings: ServerSettings) -> Ended:
        url = settings.url(settings.port)
        self._wait(settings)
        changes = self._add_context(settings)
        say_next = "novacron node join-token --node NAME --accept | ssh root@NAME novacron setup agent --join -"
        if settings.public_host in LOOPBACK:
            return Ended(changes, f"the server answers at {url}, on this host only; next: novacron node list")
        return Ended(changes, f"the server answers at {url}; next, for each node: {say_next}")

    def _wait(self, settings: ServerSettings) -> None:
        """Wait until requests are answered. Raises SetupFailed."""
        address = "127.0.0.1" if settings.host in WILDCARDS else settings.host
        deadline = time.monotonic() + ANSWERS_S_MAX
        while (objection := _objection(address, settings)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if objection:
            raise SetupFailed(f"the server does not answer: {objection}; see: journalctl -u {SERVER.unit}")

    def _add_context(self, settings: ServerSettings) -> tuple[str, ...]:
        """Give root the administrator's context that the first start has made. Raises SetupFailed."""
        try:
            made = context_file.read(FILES / "cli.json")
            if not made.current:
                return ()  # another server of this installation has made the administrator
            first = made.get(made.current)
            is_local = settings.host in (*WILDCARDS, *LOOPBACK) and settings.given_certificate is None
            url = f"https://127.0.0.1:{settings.port}" if is_local else settings.url(settings.port)
            with context_file.changing(config_path()) as contexts:
                if contexts.name_of(url, first.token):
                    return ()
                name = contexts.add_beside("local" if is_local else settings.public_host, first._replace(url=url))
                use = "" if contexts.current == name else f"; to use it: novacron context use {name}"
        except (context_file.SettingsError, OSError) as error:
            raise SetupFailed(f"can't add the administrator's token to the CLI's settings of root: {error}") from None
        return (f"context {name} in {config_path()}, for the administrator{use}",)


def _objection(address: str, settings: ServerSettings) -> str:
    """Return why a server of this host does not answer; empty: it does."""
    try:
        shown = x509.load_pem_x509_certificate(settings.api_certificate[0].read_bytes())
        fingerprint = shown.fingerprint(hashes.SHA256()).hex()
        # By whom it was issued says less than the fingerprint: it may be the server's own authority.
        with urllib3.HTTPSConnectionPool(
            address, settings.port, cert_reqs=ssl.CERT_NONE, assert_fingerprint=fingerprint
        ) as pool:
            answer = pool.request("GET", "/readyz", timeout=REQUEST_S, retries=False)
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        return str(error)
    return "" if answer.data == b"ok\n" else answer.data.decode(errors="replace")[:200]
