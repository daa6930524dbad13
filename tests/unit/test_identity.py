"""A node's certificate: who it names, and that it is renewed in time."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from novacron import pki
from novacron.agent.identity import Identity


def identity(directory: Path, authority: pki.Authority) -> Identity:
    key = pki.new_key()
    pki.write_secret(directory / "node.key", pki.key_pem(key))
    pki.write_secret(directory / "ca.crt", authority.pem)
    certificate = authority.issue_node(pki.certificate_request(key, "host-a"), "host-a")
    pki.write_secret(directory / "node.crt", certificate)
    return Identity(directory, "https://127.0.0.1:7444", "host-a")


def test_a_fresh_certificate_is_not_renewed(tmp_path: Path) -> None:
    assert identity(tmp_path, pki.Authority.open(tmp_path / "ca")).renewal() is None


def test_a_certificate_near_its_end_is_renewed_for_the_same_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = pki.Authority.open(tmp_path / "ca")
    monkeypatch.setattr(pki, "NODE_DAYS", 0)
    ending = identity(tmp_path, authority)
    request = ending.renewal()
    assert request is not None
    monkeypatch.setattr(pki, "NODE_DAYS", 30)
    pki.write_secret(ending.certificate, authority.issue_node(request, "host-a"))
    assert ending.renewal() is None
    ending.tls(server=False)  # key and certificate belong together


def test_the_server_decides_the_name_in_a_certificate(tmp_path: Path) -> None:
    """A node that asks for another's name gets its own."""
    authority = pki.Authority.open(tmp_path)
    pem = authority.issue_node(pki.certificate_request(pki.new_key(), "host-evil"), "host-a")
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.subject.rfc4514_string() == "CN=host-a"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [pki.node_host("host-a")]


def test_a_tampered_certificate_request_is_refused(tmp_path: Path) -> None:
    authority = pki.Authority.open(tmp_path)
    with pytest.raises(ValueError):
        authority.issue_node(b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "a")


def test_secrets_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    pki.Authority.open(tmp_path / "ca")
    assert (tmp_path / "ca" / "ca.key").stat().st_mode & 0o777 == 0o600
