"""A server whose API shows a certificate of another authority: people, programs and new nodes verify that one."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from cryptography import x509

from lab.replicas import Replica, serving
from novacron import context_file, pki
from novacron.agent import identity as identities
from novacron.cli import authorities
from novacron.client import ApiError, Client, Config
from novacron.client.config import load_config
from novacron.model.token import decode_ticket
from tests.waiting import pause, until

HOSTS = ["127.0.0.1", "localhost"]


class Given:
    """The files, which somebody renews."""

    def __init__(self, directory: Path) -> None:
        self.authority, self.certificate, self.key = (directory / name for name in ("ca.pem", "api.pem", "api.key"))
        self._issuer = pki.new_authority(time.time())
        self.authority.write_bytes(self._issuer[1])
        self.write_key(self.issue())

    def issue(self) -> bytes:
        """Write another certificate; return its key."""
        key, certificate = pki.issue_host(*self._issuer, "api", HOSTS)
        self.certificate.write_bytes(certificate)
        return key

    def write_key(self, key: bytes) -> None:
        pki.write_secret(self.key, key)

    def serial(self) -> int:
        return x509.load_pem_x509_certificate(self.certificate.read_bytes()).serial_number


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return Given(tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def server(given: Given) -> Iterator[tuple[Replica, Client]]:
    options = ("--tls-certificate", given.certificate, "--tls-key", given.key, "--tls-authority", given.authority)
    with serving(*map(str, options), "--workers", "2") as served:
        yield served.replicas[0], served.client


def shown(server: Replica) -> int:
    """Return the serial number of the certificate that is shown, by whichever process answers."""
    pem = ssl.get_server_certificate(("127.0.0.1", server.port), timeout=10)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def test_users_verify_the_certificate_that_was_given(server: tuple[Replica, Client], given: Given) -> None:
    replica, client = server
    assert {shown(replica) for _ in range(10)} == {given.serial()}
    assert client.config.ca == given.authority.read_text()
    assert len(list(client.list("projects"))) == 1
    own = Config(client.config.url, client.config.token, (replica.state / "ca.crt").read_text())
    with Client(own) as stranger, pytest.raises(Exception, match=r"[Cc]ertificate|verif"):
        list(stranger.list("projects"))


def test_the_first_context_trusts_it_and_goes_on_trusting_it(server: tuple[Replica, Client], given: Given) -> None:
    config = Path(os.environ["NOVACRON_CONFIG"])
    assert authorities.trust(context_file.read(config).current) == given.authority.read_text()
    assert load_config().ca == given.authority.read_text()
    list(Client().list("projects"))


def test_a_host_joins_through_it_and_trusts_the_installation_afterwards(
    server: tuple[Replica, Client], given: Given, tmp_path: Path
) -> None:
    replica, client = server
    ticket = decode_ticket(client.join_token("host-a", 3600, True))
    assert ticket.ca_pem == given.authority.read_text()
    identity = identities.join(tmp_path / "identity", ticket, "host-a")
    assert identity.ca.read_text() == (replica.state / "ca.crt").read_text()


def test_files_that_are_away_are_said_and_hold_up_nothing_else(server: tuple[Replica, Client], given: Given) -> None:
    _, client = server
    away = given.authority.with_name("away")
    given.authority.rename(away)
    try:
        with pytest.raises(ApiError, match="authority of the API's certificate can't be read") as refused:
            client.join_token("host-b")
        assert refused.value.status == 503
    finally:
        away.rename(given.authority)
    assert client.join_token("host-b")


def test_one_that_is_renewed_is_shown_by_all_processes_without_a_restart(
    server: tuple[Replica, Client], given: Given
) -> None:
    replica, client = server
    before = given.serial()
    key = given.issue()
    pause(3)  # the server looks every second: it must not take a certificate without its key
    assert {shown(replica) for _ in range(10)} == {before}
    given.write_key(key)

    def is_shown_by_all() -> bool:
        try:
            return {shown(replica) for _ in range(10)} == {given.serial()}
        except OSError:  # a process that takes it into use cuts off whoever is connecting
            return False

    until(is_shown_by_all, "all processes show it", 30)
    list(client.list("projects"))
    with urllib3.PoolManager(ca_certs=str(given.authority)) as pool:
        text = pool.request(
            "GET", f"{client.config.url}/metrics", headers={"Authorization": f"Bearer {client.config.token}"}
        )
    assert b'novacron_certificate_expiry_timestamp_seconds{certificate="api"}' in text.data
