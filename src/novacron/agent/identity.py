"""Who this node is: its key, its certificate, and how it got them."""

from __future__ import annotations

import os
import ssl
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import urllib3
from cryptography import x509

from novacron import pki, private_file
from novacron.model.errors import MALFORMED, InvalidInput
from novacron.model.token import JoinTicket, decode_ticket
from novacron.state_lock import FolderInUse, FolderLock
from novacron.telemetry import logs

OWNER_CHARS = 16
"""Of the digest of the key of an installation's authority."""
JOIN_TIMEOUT_S = 20.0
JOIN_TOKEN = "NOVACRON_JOIN_TOKEN"  # noqa: S105 (its name)
"""Environment variable with a join token."""
TOKEN_CHARS_MAX = 64 * 1024

log = logs.get(__name__)


class Identity(msgspec.Struct, frozen=True):
    """Files of a node that has joined."""

    directory: Path
    link_url: str
    name: str
    installation: str = ""
    """What tells the installation from others, whichever CA it has by now; empty: that follows from the CA."""

    @property
    def ca(self) -> Path:
        return self.directory / "ca.crt"

    @property
    def certificate(self) -> Path:
        return self.directory / "node.crt"

    @property
    def key(self) -> Path:
        return self.directory / "node.key"

    @property
    def owner(self) -> str:
        """Return what tells this node from all others, whatever host and folder it works in: installation and name."""
        return f"{self.installation}/{self.name}" if self.installation else owner_of(self.ca.read_bytes(), self.name)

    def tls(self, *, server: bool) -> ssl.SSLContext:
        return pki.mutual_tls(self.ca, self.certificate, self.key, server=server)

    def reload(self, context: ssl.SSLContext) -> None:
        """Let a context that listens use what was renewed."""
        pki.use_files(context, self.ca, self.certificate, self.key)

    def authorities(self) -> tuple[str, ...]:
        """Return the CAs that this node trusts, the issuing one first."""
        return pki.authority_hashes(self.ca.read_bytes())

    def trusts(self, peer: ssl.SSLObject) -> bool:
        """Say whether a CA that this node trusts now has issued a peer's certificate."""
        return bool(pki.peer_issuer(peer, x509.load_pem_x509_certificates(self.ca.read_bytes())))

    def objection(self) -> str | None:
        """Return why this node's certificate is not valid now, with the time and what to do; None if it is."""
        objection = pki.validity(self.certificate.read_bytes()).objection(time.time())
        return None if objection is None else f"this node's certificate {objection}; {rejoin_advice(self.name)}"

    def trust(self, ca_pem: bytes) -> None:
        """Trust these CAs from now on. Raises ValueError if this node trusts none of them yet."""
        if ca_pem == self.ca.read_bytes():
            return
        if not set(pki.authority_hashes(ca_pem)) & set(self.authorities()):
            raise ValueError("this node trusts none of these certificate authorities")
        pki.write_secret(self.ca, ca_pem)

    def renewal(self) -> bytes | None:
        """Return a certificate request when it is time to renew the certificate, or another CA issues by now."""
        certificate, ca = self.certificate.read_bytes(), self.ca.read_bytes()
        issued_otherwise = pki.pem_issuer_of(certificate, ca) != pki.authority_hash(ca)
        if not issued_otherwise and not pki.due("node", certificate, time.time()):
            return None
        return self.request(self.name)

    def request(self, name: str) -> bytes:
        """Return a request for a certificate under this name."""
        return pki.certificate_request(pki.load_key(self.key), name)


def owner_of(ca: bytes, name: str) -> str:
    """Return ``Identity.owner`` of a node with this name in the installation that has this authority (PEM)."""
    return f"{_installation_of(ca)}/{name}"


def _installation_of(ca: bytes) -> str:
    return pki.authority_hash(ca)[:OWNER_CHARS]


class _Stored(msgspec.Struct):
    link_url: str
    installation: str = ""


def load(directory: Path) -> Identity | None:
    """Return the identity of a node that has joined before, else None."""
    path = directory / "identity.json"
    if not path.exists():
        return None
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
    except (OSError, *MALFORMED) as error:
        raise InvalidInput(
            f"{path} is damaged: {error}", field="identity", hint="restore the file, or let the node join again"
        ) from error
    name = pki.common_name((directory / "node.crt").read_bytes())
    if not stored.installation:  # it joined with an earlier version; later, its CA may be another
        stored.installation = _installation_of((directory / "ca.crt").read_bytes())
        _store(directory, stored)
    return Identity(directory, stored.link_url, name, stored.installation)


def _store(directory: Path, stored: _Stored) -> None:
    pki.write_secret(directory / "identity.json", msgspec.json.encode(stored))


def rejoin_advice(name: str) -> str:
    return (
        f"create a token with: novacron node join-token --node {name}, then on this host: novacron agent --rejoin @FILE"
    )


class JoinOffer(NamedTuple):
    """The join token with which an agent is started: where it is, or itself."""

    source: str | None = None
    """``@FILE``, or ``-`` for standard input."""
    token: str | None = None

    def text(self) -> str | None:
        """Return the token; None if none was given. Raises InvalidInput."""
        return (self.token or None) if self.source is None else _read_token(self.source)

    def ticket(self) -> JoinTicket | None:
        """Return what the token says; None if none was given. Raises InvalidInput."""
        text = self.text()
        return None if text is None else decode_ticket(text)


def offered(source: str | None) -> JoinOffer:
    """Return the token of an option, or of the environment, where it does not stay.

    Raises InvalidInput for a token that is itself the option's value: every user of this host can read command lines.
    """
    token = os.environ.pop(JOIN_TOKEN, None)
    if source is not None and source != "-" and not source.startswith("@"):
        raise InvalidInput(
            "every user of this host can read a join token on a command line",
            field="join",
            hint=f"create a new token and use --join @FILE with a file that only you can read, or --join - for"
            f" standard input, or set {JOIN_TOKEN}",
        )
    return JoinOffer(source, token)


def _read_token(source: str) -> str:
    """Return the content of ``@FILE``, or of standard input. Raises InvalidInput."""
    if source == "-":
        return sys.stdin.read(TOKEN_CHARS_MAX)
    path = Path(source[1:])
    try:
        if path.is_file() and private_file.readable_by_others(path):
            raise InvalidInput(
                f"every user of this host can read {path}",
                field="join",
                hint=f"create a new token, and chmod 600 {path}",
            )
        with path.open() as file:
            return file.read(TOKEN_CHARS_MAX)
    except OSError as error:
        raise InvalidInput(f"can't read {path}: {error.strerror}", field="join") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} contains no join token", field="join") from None


def join(directory: Path, ticket: JoinTicket, name: str) -> Identity:
    """Join with a one-time ticket. Raises InvalidInput with what the server said."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = pki.new_key()
    document = _ask(ticket, name, key)
    pki.write_secret(directory / "node.key", pki.key_pem(key))
    return _keep(directory, ticket, document)


def rejoin(directory: Path, ticket: JoinTicket) -> Identity:
    """Get another certificate for the key of a node that has joined: to the server it stays the node that it was, under
    the name that it has there by now. An agent that runs uses it when it connects next. Raises InvalidInput.
    """
    identity = load(directory)
    if identity is None:
        raise InvalidInput(
            f"this host has not joined yet (no identity in {directory})", field="rejoin", hint="use --join instead"
        )
    try:
        lock = FolderLock(directory, "rejoin.lock")
    except FolderInUse as error:
        raise InvalidInput(str(error), field="rejoin") from None
    try:
        key = pki.load_key(identity.key)
        return _keep(directory, ticket, _ask(ticket, identity.name, key))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"this node's key can't be used: {error}", field="rejoin", hint=f"restore {identity.key} from a backup"
        ) from None
    finally:
        lock.release()


def renewed_at_start(identity: Identity, offer: JoinOffer) -> Identity:
    """Return the identity of a node that has joined and is started with this join token: the token is used when the
    node's certificate is not valid any more. If it can't be used the agent begins anyway: its VMs need it."""
    if offer == JoinOffer():
        return identity
    objection = identity.objection()
    if objection is None:
        log.info("this host has already joined: --join is not used", node=identity.name)
        return identity
    try:
        ticket = offer.ticket()
        if ticket is None:
            return identity
        rejoined = rejoin(identity.directory, ticket)
    except InvalidInput as error:
        log.error("can't join again", node=identity.name, certificate=objection, error=str(error))
        return identity
    log.info("joined again: the certificate had ended", node=rejoined.name)
    return rejoined


def _ask(ticket: JoinTicket, name: str, key: pki.Key) -> Mapping[str, str]:
    """Return what the server gives a host that joins. Raises InvalidInput with what it said."""
    body = {"name": name, "secret": ticket.secret, "csr": pki.certificate_request(key, name).decode()}
    context = ssl.create_default_context(cadata=ticket.ca_pem or None)
    with urllib3.PoolManager(ssl_context=context) as pool:
        try:
            answer = pool.request("POST", f"{ticket.api_url}/api/v1/join", json=body, timeout=JOIN_TIMEOUT_S, retries=2)
            document: dict[str, str] = answer.json()
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise InvalidInput(f"no answer from {ticket.api_url}: {error}", field="join") from error
    if answer.status != 201:
        raise InvalidInput(
            f"{ticket.api_url} refused: {document.get('detail')}", field="join", hint=document.get("hint")
        )
    return document


def _keep(directory: Path, ticket: JoinTicket, document: Mapping[str, str]) -> Identity:
    certificate, ca = document["certificate"].encode(), document["ca"].encode()
    before = load(directory)
    installation = _installation_of(ca) if before is None else before.installation
    pki.write_secret(directory / "ca.crt", ca)
    pki.write_secret(directory / "node.crt", certificate)
    _store(directory, _Stored(ticket.link_url, installation))
    return Identity(directory, ticket.link_url, pki.common_name(certificate), installation)
