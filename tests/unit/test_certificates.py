"""Every certificate of an installation with a moved clock: authority, server and node, in real TLS handshakes."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from pathlib import Path
from typing import cast

import pytest

from novacron import pki
from novacron.agent import identity as identities
from novacron.agent.identity import Identity
from novacron.dwcp.admittance import Admittance

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
    lives |= {"database-authority": pki.CA_DAYS, "database": pki.CA_DAYS}
    assert lives.keys() == pki.RENEW_BELOW.keys()
    for kind, days in lives.items():
        assert days * DAY_S * pki.RENEW_BELOW[kind] > pki.ENDS_SOON_S, kind


def test_a_renewed_authority_is_trusted_with_what_it_issued_before_and_by_those_who_know_the_old_one(
    tmp_path: Path,
) -> None:
    began_s = NOW_S - pki.CA_DAYS * DAY_S * 0.9
    made = Installation(tmp_path, authority_s=began_s)
    authority = pki.Authority.open(tmp_path)
    before, root = authority.pem, authority.root()
    assert authority.renew() and authority.pem == (tmp_path / "ca.crt").read_bytes() != before
    assert not authority.renew(), "once is enough"
    assert pki.expires_at_s(authority.pem) > NOW_S + (pki.CA_DAYS - 1) * DAY_S
    assert authority.root() == pki.Authority.open(tmp_path).root() == root
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


class Rotation(Installation):
    """An installation whose CA another one replaces, and a second node that is a step behind."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.authority = pki.Authority.open(directory)
        self.old = self.authority.marks[0]
        self.old_key, self.old_pem = self.authority.key_pem, self.authority.pem
        self.new_key, self.new_pem = pki.new_authority(NOW_S)
        self.new = pki.authority_hash(self.new_pem)

    def spread(self) -> None:
        assert self.authority.adopt(self.old_key, None, [self.old_pem, self.new_pem])
        assert not self.authority.adopt(self.old_key, None, [self.old_pem, self.new_pem]), "once is enough"

    def issue(self) -> None:
        assert self.authority.adopt(self.new_key, self.old_key, [self.old_pem, self.new_pem])

    def retire(self) -> None:
        assert self.authority.adopt(self.new_key, None, [self.old_pem, self.new_pem])
        self.authority.reissue_server(self.directory, ["127.0.0.1"])

    def drop(self) -> None:
        assert self.authority.adopt(self.new_key, None, [self.new_pem])


def test_while_the_ca_is_rotated_every_pair_of_neighbouring_steps_understands_each_other(tmp_path: Path) -> None:
    made = Rotation(tmp_path)
    before, listening = client_of(made), made.mutual_tls()
    made.spread()
    made.identity.trust(made.authority.pem)
    assert made.identity.authorities() == (made.old, made.new) and made.identity.renewal() is None
    pki.use_files(listening, tmp_path / "ca.crt", made.certificate, made.key)
    handshake(listening, before)
    made.issue()
    assert pki.pem_issuer_of(made.certificate.read_bytes(), made.authority.pem) == made.old
    made.identity.trust(made.authority.pem)
    request = made.identity.renewal()
    assert request is not None, "another CA issues by now: the node asks by itself"
    handshake(listening, client_of(made))  # with the certificate of before
    pki.write_secret(made.identity.certificate, made.authority.issue_node(request, "host-a"))
    assert made.identity.renewal() is None
    handshake(listening, client_of(made))
    made.retire()
    pki.use_files(listening, tmp_path / "ca.crt", made.certificate, made.key)
    handshake(listening, client_of(made))
    with pytest.raises(ssl.SSLError):
        handshake(listening, before)  # it has learned of nothing
    made.drop()
    made.identity.trust(made.authority.pem)
    handshake(made.mutual_tls(), client_of(made))
    assert made.identity.authorities() == pki.Authority.open(tmp_path).marks == (made.new,)
    assert sorted(path.name for path in tmp_path.glob("*.key")) == ["ca.key", "server.key"]


def test_a_node_takes_over_no_authority_from_strangers_and_stays_the_node_that_it_is(tmp_path: Path) -> None:
    made = Rotation(tmp_path)
    pki.write_secret(made.node / "identity.json", b'{"link_url": "https://127.0.0.1:1"}')
    identity = identities.load(made.node)
    assert identity is not None
    owner = identity.owner
    assert owner == identities.owner_of(made.old_pem, "host-a")
    with pytest.raises(ValueError, match="none of these certificate authorities"):
        identity.trust(made.new_pem)
    made.spread()
    identity.trust(made.authority.pem)
    made.issue()
    made.retire()
    made.drop()
    identity.trust(made.authority.pem)
    restarted = identities.load(made.node)
    assert restarted is not None and restarted.owner == identity.owner == owner, "its QEMUs are found by that"


def test_a_certificate_of_a_ca_that_was_dropped_is_refused_also_by_what_has_trusted_it(tmp_path: Path) -> None:
    made = Rotation(tmp_path)
    listening, before = made.mutual_tls(), client_of(made)
    refused: list[bool] = []

    class Connection:
        def abort(self) -> None:
            refused.append(True)

    ours, theirs = socket.socketpair()

    def dial() -> None:
        with before.wrap_socket(theirs, server_hostname="127.0.0.1") as connection:
            connection.recv(1)

    dialling = threading.Thread(target=dial)
    dialling.start()
    with ours, listening.wrap_socket(ours, server_side=True) as tls:
        peer = cast(ssl.SSLObject, tls)
        admittance, open_one = Admittance(pki.peer_key_hash, made.identity.trusts), Connection()
        assert admittance.admits(peer, open_one)
        for step in (made.spread, made.issue, made.retire):
            step()
            made.identity.trust(made.authority.pem)
            admittance.check_anew()
            assert not refused, step
        made.drop()
        made.identity.trust(made.authority.pem)
        admittance.check_anew()
        assert refused, "a connection that is open is cut"
        assert not admittance.admits(peer, Connection())
        assert pki.peer_issuer(tls, made.authority.trusted) == ""
        tls.send(b".")
    dialling.join()


def test_a_ca_and_its_key_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    pki.Authority.open(tmp_path)
    pki.write_secret(tmp_path / "ca.key", pki.new_authority(NOW_S)[0])
    with pytest.raises(ValueError, match=r"no certificate for ca\.key"):
        pki.Authority.open(tmp_path)


def test_a_certificate_of_the_authority_that_was_renewed_here_stays_when_another_one_is_trusted(tmp_path: Path) -> None:
    made = Rotation(tmp_path)
    aged = pki.Authority.open(tmp_path, lambda: NOW_S + pki.CA_DAYS * DAY_S * 0.9)
    assert aged.renew()
    assert aged.adopt(made.old_key, None, [made.old_pem, made.new_pem])
    assert pki.expires_at_s(aged.pem) > pki.expires_at_s(made.old_pem) and aged.marks == (made.old, made.new)
