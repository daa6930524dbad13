"""Who this node is: its key, its certificate, and how it got them."""

from __future__ import annotations

import json
import ssl
import time
from pathlib import Path

import msgspec
import urllib3
from cryptography import x509

from novacron import pki
from novacron.model.errors import InvalidInput
from novacron.model.token import JoinTicket

OWNER_CHARS = 16
"""Of the digest of the key of an installation's authority."""
JOIN_TIMEOUT_S = 20.0


class Identity(msgspec.Struct, frozen=True):
    """Files of a node that has joined."""

    directory: Path
    link_url: str
    name: str

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
        return owner_of(self.ca.read_bytes(), self.name)

    def tls(self, *, server: bool) -> ssl.SSLContext:
        return pki.mutual_tls(self.ca, self.certificate, self.key, server=server)

    def reload(self, context: ssl.SSLContext) -> None:
        """Let a context that listens use the certificate that was renewed."""
        context.load_cert_chain(self.certificate, self.key)

    def renewal(self) -> bytes | None:
        """Return a certificate request when it is time to renew the certificate."""
        if not pki.due("node", self.certificate.read_bytes(), time.time()):
            return None
        return self.request(self.name)

    def request(self, name: str) -> bytes:
        """Return a request for a certificate under this name."""
        return pki.certificate_request(pki.load_key(self.key), name)


def owner_of(ca: bytes, name: str) -> str:
    """Return ``Identity.owner`` of a node with this name in the installation that has this authority (PEM)."""
    return f"{pki.key_hash(x509.load_pem_x509_certificate(ca))[:OWNER_CHARS]}/{name}"


def load(directory: Path) -> Identity | None:
    """Return the identity of a node that has joined before, else None."""
    path = directory / "identity.json"
    if not path.exists():
        return None
    stored = json.loads(path.read_text())
    return Identity(directory, stored["link_url"], pki.common_name((directory / "node.crt").read_bytes()))


def join(directory: Path, ticket: JoinTicket, name: str) -> Identity:
    """Join with a one-time ticket. Raises InvalidInput with what the server said."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = pki.new_key()
    body = {"name": name, "secret": ticket.secret, "csr": pki.certificate_request(key, name).decode()}
    context = ssl.create_default_context(cadata=ticket.ca_pem)
    with urllib3.PoolManager(ssl_context=context) as pool:
        try:
            answer = pool.request("POST", f"{ticket.api_url}/api/v1/join", json=body, timeout=JOIN_TIMEOUT_S, retries=2)
        except urllib3.exceptions.HTTPError as error:
            raise InvalidInput(f"can't reach {ticket.api_url}: {error}", field="join") from error
    document = answer.json()
    if answer.status != 201:
        raise InvalidInput(
            f"{ticket.api_url} refused: {document.get('detail')}", field="join", hint=document.get("hint")
        )
    pki.write_secret(directory / "ca.crt", document["ca"].encode())
    pki.write_secret(directory / "node.key", pki.key_pem(key))
    pki.write_secret(directory / "node.crt", document["certificate"].encode())
    identity = {"link_url": ticket.link_url}
    pki.write_secret(directory / "identity.json", json.dumps(identity).encode())
    return Identity(directory, ticket.link_url, name)
