"""A certificate for the API that somebody else has issued: what is refused, what is said, and what is taken."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import typer
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from novacron import pki
from novacron.model.errors import InvalidInput
from novacron.server.given_certificate import GivenCertificate
from novacron.service_options import ServerOptions

NAMES = ["api.example.net", "*.wild.example.net", "192.0.2.7"]


class Files:
    """An authority and what it has issued."""

    def __init__(self, directory: Path, authority: tuple[bytes, bytes], names: list[str] = NAMES) -> None:
        self.key, self.certificate, self.authority = (directory / name for name in ("key", "certificate", "authority"))
        key, certificate = pki.issue_host(*authority, "api", names)
        for path, content in ((self.key, key), (self.certificate, certificate), (self.authority, authority[1])):
            path.write_bytes(content)
            path.chmod(0o640)

    @property
    def given(self) -> GivenCertificate:
        return GivenCertificate(self.certificate, self.key, self.authority)


@pytest.fixture(scope="module")
def authority() -> tuple[bytes, bytes]:
    return pki.new_authority(time.time())


@pytest.fixture
def files(tmp_path: Path, authority: tuple[bytes, bytes]) -> Files:
    return Files(tmp_path, authority)


@pytest.mark.parametrize("host", ["api.example.net", "API.example.net", "a.wild.example.net", "192.0.2.7"])
def test_a_certificate_for_the_host_is_taken_without_a_word(files: Files, host: str) -> None:
    assert files.given.check(host) == []
    assert files.given.trust() == files.authority.read_text()
    assert GivenCertificate(files.certificate, files.key).trust() == ""


@pytest.mark.parametrize("host", ["other.example.net", "wild.example.net", "a.b.wild.example.net", "192.0.2.8"])
def test_a_certificate_for_another_host_is_taken_and_said(files: Files, host: str) -> None:
    (trouble,) = files.given.check(host)
    assert host in trouble and "api.example.net" in trouble and "--advertise" in trouble


def test_a_certificate_that_has_ended_is_taken_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: tuple[bytes, bytes]
) -> None:
    files = Files(tmp_path, authority)
    ends_at_s = pki.expires_at_s(files.certificate.read_bytes())
    monkeypatch.setattr(time, "time", lambda: ends_at_s + 1)
    assert re.search(r"certificate ended on \d{4}-", " ".join(files.given.check(NAMES[0])))


def _lacks(files: Files) -> None:
    files.certificate.unlink()


def _is_no_certificate(files: Files) -> None:
    files.certificate.write_text("certificate\n")


def _is_of_another_key(files: Files) -> None:
    files.key.write_bytes(pki.key_pem(pki.new_key()))


def _is_no_key(files: Files) -> None:
    files.key.write_text("key\n")


def _has_a_password(files: Files) -> None:
    encryption = serialization.BestAvailableEncryption(b"secret")
    parts = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    files.key.write_bytes(pki.load_key(files.key).private_bytes(*parts))


def _all_can_read_it(files: Files) -> None:
    files.key.chmod(0o644)


def _is_of_another_authority(files: Files) -> None:
    files.authority.write_bytes(pki.new_authority(time.time())[1])


@pytest.mark.parametrize(
    ("damage", "field", "words"),
    [
        (_lacks, "tls-certificate", "can't read .*certificate: No such file"),
        (_is_no_certificate, "tls-certificate", "no certificate"),
        (_is_of_another_key, "tls-key", "is not the key of"),
        (_is_no_key, "tls-key", "not a private key"),
        (_has_a_password, "tls-key", "protected by a password"),
        (_all_can_read_it, "tls-key", "every user of this machine can read"),
        (_is_of_another_authority, "tls-authority", "has not issued"),
    ],
)
def test_what_nobody_could_be_served_with_is_refused(files: Files, damage: object, field: str, words: str) -> None:
    assert callable(damage)
    damage(files)
    with pytest.raises(InvalidInput, match=words) as refused:
        files.given.check(NAMES[0])
    assert refused.value.field == field


def test_an_authority_may_be_behind_the_certificate(files: Files) -> None:
    files.certificate.write_bytes(files.certificate.read_bytes() + files.authority.read_bytes())
    assert len(x509.load_pem_x509_certificates(files.certificate.read_bytes())) == 2
    assert files.given.check(NAMES[0]) == []


@pytest.mark.parametrize(
    "given", [{"tls_certificate": Path("a")}, {"tls_key": Path("a")}, {"tls_authority": Path("a")}]
)
def test_a_certificate_and_its_key_are_given_together(given: dict[str, Path]) -> None:
    with pytest.raises(typer.BadParameter, match="given together"):
        ServerOptions(**given).settings("", Path(), Path())  # type: ignore[arg-type]
