"""A node: its token, the servers that it must reach, and its own address."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from novacron import pki
from novacron.agent import identity as identities
from novacron.agent.settings import AgentSettings
from novacron.local.setup import checks
from novacron.local.setup.flow import Ended, ServiceSetup
from novacron.local.setup.host import SetupFailed
from novacron.local.setup.plan import SetupRefused, SetupRequest
from novacron.local.setup.services import AGENT, JOIN_TOKEN
from novacron.model.errors import InvalidInput
from novacron.model.token import JoinTicket, decode_ticket
from novacron.service_options import STATE_DIR, AgentOptions

IDENTITY = STATE_DIR / "agent/identity"


class AgentSetup(ServiceSetup[AgentOptions, AgentSettings]):
    """Sets a node up. ``join``: where its token is, as for ``novacron agent``."""

    service = AGENT

    def __init__(self, join: str | None) -> None:
        self._join = join
        self._ticket: JoinTicket | None = None

    def request(self, given: Mapping[str, object], replace: bool) -> SetupRequest:
        identity = self._identity()
        token = self._token(identity)
        defaults: dict[str, object] = {} if identity is not None else {"join": f"@{JOIN_TOKEN}"}
        server = self._ticket.link_url if self._ticket is not None else identity.link_url if identity else ""
        address = checks.own_address(server) if server else None
        if address is not None:
            defaults["advertise"] = address
        return SetupRequest(AGENT, given, defaults, replace, token)

    def _identity(self) -> identities.Identity | None:
        try:
            return identities.load(IDENTITY)
        except (InvalidInput, OSError, ValueError) as error:
            raise SetupRefused(f"this host's identity in {IDENTITY} can't be used: {error}") from None

    def _token(self, identity: identities.Identity | None) -> str | None:
        """Return the token for a host that has not joined. Raises SetupRefused."""
        try:
            text = identities.offered(self._join).text()
            if text is None and identity is None and JOIN_TOKEN.exists():
                text = JOIN_TOKEN.read_text()
            self._ticket = None if text is None else decode_ticket(text)
        except (InvalidInput, OSError, ValueError) as error:
            if identity is not None:
                return None  # it is not needed any more
            raise SetupRefused(f"--join: {_in_words(error)}") from None
        if identity is None and text is None:
            raise SetupRefused(
                "this host has not joined yet, and needs a token: create one with novacron node join-token --node NAME,"
                " and give it with --join @FILE, or with --join - as standard input"
            )
        if identity is not None and self._ticket is not None:
            _check_installation(identity, self._ticket)
        return None if text is None or identity is not None else text.strip()

    def node(self) -> str | None:
        identity = self._identity()
        return None if identity is None else identity.name

    def settings(self, options: AgentOptions) -> AgentSettings:
        return options.settings()

    def database(self, options: AgentOptions) -> str | None:
        del options
        return None

    def check(self, settings: AgentSettings, now: AgentSettings | None, is_active: bool) -> Iterator[str]:
        own = (now.dwcp_port,) if is_active and now is not None else ()
        yield from checks.used_ports(settings.dwcp_host, {"dwcp-port": settings.dwcp_port}, own)
        if self._ticket is not None and self.node() is None:
            yield from checks.unreachable((self._ticket.api_url, self._ticket.link_url))

    def end(self, settings: AgentSettings) -> Ended:
        node = self.node()
        if node is None:
            raise SetupFailed(f"the agent runs, but has not joined; see: journalctl -u {AGENT.unit}")
        return Ended(
            (),
            f"this host has joined as node {node}; next, unless its token was made with --accept, where the CLI works:"
            f" novacron node accept {node}",
        )


def _in_words(error: Exception) -> str:
    if not isinstance(error, InvalidInput):
        return str(error)
    return f"{error.detail}; {error.hint}" if error.hint else error.detail


def _check_installation(identity: identities.Identity, ticket: JoinTicket) -> None:
    """Raise SetupRefused for a token of another installation than the one that this host has joined."""
    try:
        theirs = pki.authority_hashes(ticket.ca_pem.encode())
    except ValueError:
        raise SetupRefused("--join: this is not a join token: its certificate can't be read") from None
    if not set(theirs) & set(identity.authorities()):
        raise SetupRefused(
            f"this host is node {identity.name} of another installation ({identity.link_url}): remove it there first"
            f" (novacron node remove {identity.name}), and then, on this host, {STATE_DIR / 'agent'}"
        )
