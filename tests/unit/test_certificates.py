"""Every certificate of an installation with a moved clock: authority, server and node, in real TLS handshakes."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from novacron import pki
from novacron.agent.identity import Identity

DAY_S = 86_400.0
NOW_S = time.time()


class Installation:
    """The files of one installation, made as if now were another time."""

    def __init__(self, directory: Path, *, authority_s: float = NOW_S, server_s: float = NOW_S, node_s: float = NOW_S):
        self.directory = directory
        pki.Authority.open(directory, lambda: authority_s)
        self.certificate, self.key = self._issuing(server_s).issue_server(directory, ["127.0.0.1"])
        self.node = directory / "node"
        key = pki.new_key()
        pki.write_secret(self.node / "node.key", pki.key_pem(key))
        pki.write_secret(self.node / "ca.crt", (directory / "ca.crt").read_bytes())
        request = pki.certificate_request(key, "host-a")
        pki.write_secret(self.node / "node.crt", self._issuing(node_s).issue_node(request, "host-a"))
        self.identity = Identity(self.node, "https://127.0.0.1:1", "host-a")

    def _issuing(self, now_s: float) -> pki.Authority:
        return pki.Authority.open(self.directory, lambda: now_s)

    def link_tls(self) -> ssl.SSLContext:
        return pki.agent_link_tls(self.directory / "ca.crt", self.certificate, self.key)

    def mutual_tls(self) -> ssl.SSLContext:
        return pki.mutual_tls(self.directory / "ca.crt", self.certificate, self.key, server=True)


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> pki.Validity:
    """Connect over a real socket, and return what the server knows of the client's certificate. Raises SSLError."""
    ours, theirs = socket.socketpair()
    failures: list[OSError] = []

    def dial() -> None:
        try:
            with client.wrap_socket(theirs, server_hostname="127.0.0.1") as connection:
                connection.recv(1)
        except OSError as error:
            failures.append(error)

    dialling = threading.Thread(target=dial)
    dialling.start()
    try:
        with ours, server.wrap_socket(ours, server_side=True) as connection:
            validity = pki.peer_validity(connection)
            connection.sendall(b"!")
    finally:
        dialling.join(10)
    assert not failures, failures
    return validity


def client_of(made: Installation) -> ssl.SSLContext:
    return made.identity.tls(server=False)


def test_certificates_that_are_valid_connect(tmp_path: Path) -> None:
    made = Installation(tmp_path)
    assert handshake(made.mutual_tls(), client_of(made)).objection(NOW_S) is None


def test_the_agent_link_lets_a_node_in_to_tell_it_that_its_certificate_has_ended(tmp_path: Path) -> None:
    made = Installation(tmp_path, node_s=NOW_S - (pki.NODE_DAYS + 1) * DAY_S)
    validity = handshake(made.link_tls(), client_of(made))
    assert validity.objection(NOW_S) == f"ended on {pki.utc(validity.ends_at_s)}"
    assert NOW_S - 2 * DAY_S < validity.ends_at_s < NOW_S


def test_the_agent_link_sees_a_certificate_that_is_not_valid_yet(tmp_path: Path) -> None:
    made = Installation(tmp_path, node_s=NOW_S + DAY_S)
    objection = handshake(made.link_tls(), client_of(made)).objection(NOW_S)
    assert objection is not None and objection.startswith("begins on") and "clock" in objection


def test_the_agent_link_refuses_certificates_of_another_authority_whatever_their_time(tmp_path: Path) -> None:
    made, other = Installation(tmp_path / "a"), Installation(tmp_path / "b")
    pki.write_secret(other.node / "ca.crt", (made.directory / "ca.crt").read_bytes())
    with pytest.raises(ssl.SSLError):
        handshake(made.link_tls(), client_of(other))


def test_migrations_refuse_a_node_whose_certificate_has_ended(tmp_path: Path) -> None:
    made = Installation(tmp_path, node_s=NOW_S - (pki.NODE_DAYS + 1) * DAY_S)
    with pytest.raises(ssl.SSLError, match="expired"):
        handshake(made.mutual_tls(), client_of(made))


@pytest.mark.parametrize(
    "ended", [{"server_s": NOW_S - (pki.SERVER_DAYS + 1) * DAY_S}, {"authority_s": NOW_S - (pki.CA_DAYS + 1) * DAY_S}]
)
def test_nodes_and_users_refuse_a_server_whose_certificate_or_authority_has_ended(
    tmp_path: Path, ended: dict[str, float]
) -> None:
    made = Installation(tmp_path, **ended)
    with pytest.raises(ssl.SSLError, match=r"EXPIRED|expired"):
        handshake(made.link_tls(), client_of(made))


def test_each_certificate_is_renewed_before_anybody_is_warned(tmp_path: Path) -> None:
    lives = {"authority": pki.CA_DAYS, "server": pki.SERVER_DAYS, "node": pki.NODE_DAYS}
    assert lives.keys() == pki.RENEW_BELOW.keys()
    for kind, days in lives.items():
        assert days * DAY_S * pki.RENEW_BELOW[kind] > pki.ENDS_SOON_S, kind


def test_a_renewed_authority_is_trusted_with_what_it_issued_before_and_by_those_who_know_the_old_one(
    tmp_path: Path,
) -> None:
    began_s = NOW_S - pki.CA_DAYS * DAY_S * 0.9
    made = Installation(tmp_path, authority_s=began_s)
    authority = pki.Authority.open(tmp_path)
    before, derived = authority.pem, authority.derive("pages")
    assert authority.renew() and authority.pem == (tmp_path / "ca.crt").read_bytes() != before
    assert not authority.renew(), "once is enough"
    assert pki.expires_at_s(authority.pem) > NOW_S + (pki.CA_DAYS - 1) * DAY_S
    assert authority.derive("pages") == pki.Authority.open(tmp_path).derive("pages") == derived
    handshake(made.mutual_tls(), client_of(made))  # the old root, and certificates of before
    authority.issue_server(tmp_path, ["127.0.0.1"])
    handshake(made.mutual_tls(), client_of(made))  # the old root, and a certificate of now
    pki.write_secret(made.node / "ca.crt", authority.pem)
    handshake(made.mutual_tls(), client_of(made))  # the new root, and the node's certificate of before


def test_a_server_certificate_that_is_reissued_keeps_its_key(tmp_path: Path) -> None:
    made = Installation(tmp_path, server_s=NOW_S - 300 * DAY_S)
    assert pki.due("server", made.certificate.read_bytes(), NOW_S)
    listening, key = made.mutual_tls(), made.key.read_bytes()
    pki.Authority.open(tmp_path).reissue_server(tmp_path, ["127.0.0.1"])
    assert made.key.read_bytes() == key
    assert not pki.due("server", made.certificate.read_bytes(), NOW_S)
    listening.load_cert_chain(made.certificate, made.key)  # a context in use takes it
    handshake(listening, client_of(made))
