"""Certificates: the platform's own CA, and what it issues to servers and nodes."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from novacron import private_file

NODE_DOMAIN = "node.novacron.internal"
CA_DAYS = 3650
SERVER_DAYS = 397
NODE_DAYS = 30
CLOCK_SKEW = datetime.timedelta(minutes=10)
ENDS_SOON_S = 14 * 86_400.0
"""From when on somebody is told that a certificate ends. Those that can be renewed are renewed before."""
RENEW_BELOW = {"authority": 1 / 5, "server": 1 / 3, "node": 1 / 2}
"""Which share of its life is left when a certificate is renewed: two years, four months, 15 days."""
NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which Python's ssl module does not name."""

Clock = Callable[[], float]
Key = ec.EllipticCurvePrivateKey


def node_host(name: str) -> str:
    """Return the host name in a node's certificate."""
    return f"{name}.{NODE_DOMAIN}"


def write_secret(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    private_file.write(path, data)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the private key in a PEM file. Raises ValueError when it is of another kind."""
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} holds no elliptic-curve key")
    return key


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: str, issuer: x509.Name, days: int, now_s: float) -> x509.CertificateBuilder:
    now = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    """Return what RFC 5280, section 4.2.1.3, demands of a CA, and what TLS 1.3 needs of the others."""
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


DERIVED_MAX = 10_000
"""Derived secrets that are remembered: of projects and purposes."""


class Authority:
    """The CA of one installation: its certificate and key, in two files of a directory.

    Its certificate is renewed for the same key and name: what it has issued stays valid, and who trusts the earlier
    certificate trusts what it issues from then on, until that one ends.
    """

    def __init__(self, directory: Path, clock: Clock = time.time) -> None:
        self._directory = directory
        self._clock = clock
        self._key = load_key(directory / "ca.key")
        self._load()
        self._derived: dict[str, bytes] = {}

    def _load(self) -> None:
        self.pem = (self._directory / "ca.crt").read_bytes()
        self._certificate = x509.load_pem_x509_certificate(self.pem)

    @classmethod
    def open(cls, directory: Path, clock: Clock = time.time) -> Authority:
        """Load the CA, or make it on the first start."""
        if not (directory / "ca.crt").exists():
            key = new_key()
            write_secret(directory / "ca.key", key_pem(key))
            write_secret(directory / "ca.crt", _self_signed(key, clock()))
        return cls(directory, clock)

    def reload(self) -> None:
        """Take over the CA's certificate from its file, where another process may have renewed it."""
        self._load()

    def renew(self) -> bool:
        """Renew the CA's own certificate if it is time; say whether it was."""
        if not due("authority", self.pem, self._clock()):
            return False
        write_secret(self._directory / "ca.crt", _self_signed(self._key, self._clock()))
        self._load()
        return True

    def derive(self, purpose: str) -> bytes:
        """Return a secret of 32 bytes that is always the same for one purpose (HKDF, RFC 5869, from the CA's key)."""
        derived = self._derived.get(purpose)
        if derived is None:
            derived = self._derive(purpose)
            if len(self._derived) < DERIVED_MAX:
                self._derived[purpose] = derived
        return derived

    def _derive(self, purpose: str) -> bytes:
        secret = self._key.private_numbers().private_value.to_bytes(32, "big")
        return HKDF(hashes.SHA256(), 32, b"novacron", purpose.encode()).derive(secret)

    def _sign(
        self, builder: x509.CertificateBuilder, key: ec.EllipticCurvePublicKey, hosts: list[str], client: bool
    ) -> bytes:
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        usages = [ExtendedKeyUsageOID.SERVER_AUTH] + ([ExtendedKeyUsageOID.CLIENT_AUTH] if client else [])
        certificate = (
            builder.public_key(key)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._certificate.public_key()),  # type: ignore[arg-type]
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def issue_server(self, directory: Path, hosts: list[str]) -> tuple[Path, Path]:
        """Write the server's certificate for ``hosts`` (names or addresses) and its key; return both paths."""
        write_secret(directory / "server.key", key_pem(new_key()))
        self.reissue_server(directory, hosts)
        return directory / "server.crt", directory / "server.key"

    def reissue_server(self, directory: Path, hosts: list[str]) -> None:
        """Write another certificate for the server's key: whoever reads both files finds two that belong together."""
        key = load_key(directory / "server.key").public_key()
        builder = _builder("novacron-server", self._certificate.subject, SERVER_DAYS, self._clock())
        write_secret(directory / "server.crt", self._sign(builder, key, hosts, client=False))

    def issue_node(self, csr_pem: bytes, name: str, only_key: str | None = None) -> bytes:
        """Return a certificate for the node's own key.

        Raises ValueError for a request that is not well signed, or that is for another key than that with this hash.
        """
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        if not request.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("the certificate request is not signed by an elliptic-curve key")
        if only_key is not None and key_hash(request) != only_key:
            raise ValueError("the certificate request is for another key than the node's")
        builder = _builder(name, self._certificate.subject, NODE_DAYS, self._clock())
        return self._sign(builder, key, [node_host(name)], client=True)


def _self_signed(key: ec.EllipticCurvePrivateKey, now_s: float) -> bytes:
    """Return the CA's own certificate (PEM)."""
    certificate = (
        _builder("NovaCron CA", _name("NovaCron CA"), CA_DAYS, now_s)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def certificate_request(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    """Return a PEM certificate request of a node for its key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(name))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class Validity(NamedTuple):
    """From when until when a certificate is valid, in seconds since 1970."""

    starts_at_s: float
    ends_at_s: float

    def remaining_share(self, now_s: float) -> float:
        """Return which share of its life is left, 0 to 1."""
        return max(0.0, (self.ends_at_s - now_s) / (self.ends_at_s - self.starts_at_s))

    def objection(self, now_s: float) -> str | None:
        """Return why it is not valid now, with the time; None if it is."""
        if now_s >= self.ends_at_s:
            return f"ended on {utc(self.ends_at_s)}"
        if now_s < self.starts_at_s:
            return f"begins on {utc(self.starts_at_s)}; is a clock wrong?"
        return None


def _validity(certificate: x509.Certificate) -> Validity:
    return Validity(certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp())


def validity(cert_pem: bytes) -> Validity:
    """Return from when until when a certificate (PEM) is valid. Raises ValueError."""
    return _validity(x509.load_pem_x509_certificate(cert_pem))


def expires_at_s(cert_pem: bytes) -> float:
    """Return when a certificate ends, in seconds since 1970."""
    return validity(cert_pem).ends_at_s


def due(kind: str, cert_pem: bytes, now_s: float) -> bool:
    """Say whether it is time to renew a certificate of a kind of ``RENEW_BELOW``."""
    return validity(cert_pem).remaining_share(now_s) <= RENEW_BELOW[kind]


def utc(at_s: float) -> str:
    """Return a time as people read it, such as 2027-01-31 12:00 UTC."""
    return f"{datetime.datetime.fromtimestamp(at_s, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def mutual_tls(ca: Path, certificate: Path, key: Path, *, server: bool) -> ssl.SSLContext:
    """Return a TLS 1.3 context that proves who we are and demands the same of the peer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(ca)
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def served_validity(url: str, timeout_s: float) -> Validity:
    """Return from when until when the certificate is valid that a server shows, to say what is wrong with it: nothing
    of it is verified. Raises OSError, ValueError."""
    parts = urlsplit(url)
    pem = ssl.get_server_certificate((parts.hostname or "", parts.port or 443), timeout=timeout_s)
    return validity(pem.encode())


def agent_link_tls(ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """Return ``mutual_tls`` of the server that lets nodes in whose certificate has ended, and no others.

    TLS can tell such a node nothing that people understand. Whoever serves the connection must look at
    ``peer_validity`` first, and say it.
    """
    context = mutual_tls(ca, certificate, key, server=True)
    context.verify_flags |= NO_CHECK_TIME
    return context


def key_hash(certificate: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """Return what tells the key of a certificate, or of a request for one, from others."""
    format_ = serialization.PublicFormat.SubjectPublicKeyInfo
    der = certificate.public_key().public_bytes(serialization.Encoding.DER, format_)
    return hashlib.sha256(der).hexdigest()


def authority_hash(ca_pem: bytes) -> str:
    """Return ``key_hash`` of a certificate (PEM). Raises ValueError."""
    return key_hash(x509.load_pem_x509_certificate(ca_pem))


def peer_key_hash(ssl_object: ssl.SSLObject | ssl.SSLSocket) -> str:
    """Return ``key_hash`` of the peer's verified certificate."""
    der = ssl_object.getpeercert(binary_form=True)
    if der is None:
        raise ssl.SSLError("the peer has shown no certificate")
    return key_hash(x509.load_der_x509_certificate(der))


def peer_validity(ssl_object: ssl.SSLObject | ssl.SSLSocket) -> Validity:
    """Return from when until when the peer's certificate is valid."""
    der = ssl_object.getpeercert(binary_form=True)
    if der is None:
        raise ssl.SSLError("the peer has shown no certificate")
    return _validity(x509.load_der_x509_certificate(der))


def common_name(certificate: bytes) -> str:
    """Return whose certificate (PEM) it is. Raises ValueError."""
    for attribute in x509.load_pem_x509_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        return str(attribute.value)
    raise ValueError("the certificate has no common name")


def peer_name(ssl_object: ssl.SSLObject | ssl.SSLSocket) -> str:
    """Return the common name in the peer's verified certificate."""
    der = ssl_object.getpeercert(binary_form=True)
    if der is not None:
        for attribute in x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME):
            return str(attribute.value)
    raise ssl.SSLError("the peer's certificate has no common name")
