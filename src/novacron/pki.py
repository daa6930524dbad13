"""Certificates: the platform's own CA, and what it issues to servers and nodes."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import ipaddress
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from novacron import private_file

NODE_DOMAIN = "node.novacron.internal"
CA_DAYS = 3650
SERVER_DAYS = 397
NODE_DAYS = 30
CLOCK_SKEW = datetime.timedelta(minutes=10)
ENDS_SOON_S = 14 * 86_400.0
"""From when on somebody is told that a certificate ends. Those that can be renewed are renewed before."""
RENEW_BELOW = {"authority": 1 / 5, "server": 1 / 3, "node": 1 / 2, "database-authority": 1 / 5, "database": 1 / 3}
"""Which share of its life is left when a certificate is renewed: two years, four months, 15 days; of a cluster of the
database two years, and three years and four months."""
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
    try:
        return _key_of(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _key_of(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("it is no elliptic-curve key")
    return key


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


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


def expand(root: bytes, purpose: str) -> bytes:
    """Return a secret of 32 bytes that is always the same for one purpose (the second step of HKDF, RFC 5869)."""
    return HKDFExpand(hashes.SHA256(), 32, purpose.encode()).derive(root)


def fernet_key(secret: bytes) -> bytes:
    """Return 32 bytes as Fernet takes a key."""
    return base64.urlsafe_b64encode(secret)


class Issuer(NamedTuple):
    """A CA: its certificate, and its key."""

    certificate: x509.Certificate
    key: Key

    @classmethod
    def of(cls, key: Key, certificates: Sequence[x509.Certificate]) -> Issuer:
        """Return the CA with this key. Raises ValueError if none of these certificates is for it."""
        own_hash = public_key_hash(key.public_key())
        for certificate in certificates:
            if key_hash(certificate) == own_hash:
                return cls(certificate, key)
        raise ValueError("ca.crt has no certificate for ca.key: restore both from the same backup")


class Authority:
    """The CA of one installation, in files of a directory: ``ca.key`` issues certificates, ``ca.crt`` has what is
    trusted, the issuing CA first. While the CA is rotated, ``ca-before.key`` still issues to servers.

    Its certificate is renewed for the same key and name: what it has issued stays valid, and who trusts the earlier
    certificate trusts what it issues from then on, until that one ends.
    """

    def __init__(self, directory: Path, clock: Clock = time.time) -> None:
        self._directory = directory
        self._clock = clock
        self.reload()

    @classmethod
    def open(cls, directory: Path, clock: Clock = time.time) -> Authority:
        """Load the CA, or make it on the first start."""
        if not (directory / "ca.crt").exists():
            key = new_key()
            write_secret(directory / "ca.key", key_pem(key))
            write_secret(directory / "ca.crt", _self_signed(key, clock()))
        return cls(directory, clock)

    def reload(self) -> None:
        """Take over what is in the files, which another process may have changed. Raises OSError, ValueError."""
        certificates = x509.load_pem_x509_certificates((self._directory / "ca.crt").read_bytes())
        self._issuer = Issuer.of(load_key(self._directory / "ca.key"), certificates)
        before = self._directory / "ca-before.key"
        self._server_issuer = Issuer.of(load_key(before), certificates) if before.exists() else self._issuer
        others = [certificate for certificate in certificates if certificate is not self._issuer.certificate]
        self.trusted = [self._issuer.certificate, *others]
        self.pem = b"".join(_pem(certificate) for certificate in self.trusted)
        self.roots = [_root(key) for key in dict.fromkeys((self._issuer.key, self._server_issuer.key))]
        """What is derived from the keys of the CAs that issue, as ``root`` does: first that of nodes."""

    @property
    def key_pem(self) -> bytes:
        """The issuing CA's private key."""
        return key_pem(self._issuer.key)

    @property
    def marks(self) -> tuple[str, ...]:
        """What tells the trusted CAs from others, the issuing one first."""
        return tuple(key_hash(certificate) for certificate in self.trusted)

    @property
    def trust_mark(self) -> str:
        """Return what tells the set of trusted CAs from others."""
        return trust_mark(self.marks)

    @property
    def server_mark(self) -> str:
        """Which CA issues the certificates of servers."""
        return key_hash(self._server_issuer.certificate)

    def renew(self) -> bool:
        """Renew the CA's own certificate if it is time; say whether it was."""
        issuing, *others = self.trusted
        if not due("authority", _pem(issuing), self._clock()):
            return False
        self._write([x509.load_pem_x509_certificate(_self_signed(self._issuer.key, self._clock())), *others])
        return True

    def adopt(self, key: bytes, before: bytes | None, certificates: Sequence[bytes]) -> bool:
        """Issue with this key from now on, to servers with the one ``before`` if it is given, and trust these
        certificates (all PEM); say whether something is different. A certificate that was renewed here stays.

        Raises OSError, ValueError.
        """
        here = {key_hash(certificate): certificate for certificate in self.trusted}
        authorities = [x509.load_pem_x509_certificate(pem) for pem in certificates]
        trusted = [here.get(key_hash(certificate), certificate) for certificate in authorities]
        issuer = Issuer.of(_key_of(key), trusted).certificate
        trusted.sort(key=lambda certificate: certificate is not issuer)
        present = self._before_pem()
        if (key, before, trusted) == (self.key_pem, present, self.trusted):
            return False
        if before is not None:
            write_secret(self._directory / "ca-before.key", before)
        write_secret(self._directory / "ca.key", key)
        if before is None:
            (self._directory / "ca-before.key").unlink(missing_ok=True)
        self._write(trusted)
        return True

    def _before_pem(self) -> bytes | None:
        return None if self._server_issuer is self._issuer else key_pem(self._server_issuer.key)

    def _write(self, trusted: Sequence[x509.Certificate]) -> None:
        write_secret(self._directory / "ca.crt", b"".join(_pem(certificate) for certificate in trusted))
        self.reload()

    def root(self) -> bytes:
        """Return what all secrets of the platform were derived from before they had keys of their own: the first step
        of HKDF (RFC 5869) from the CA's key, which does not give that key away."""
        return _root(self._issuer.key)

    def issue_server(self, directory: Path, hosts: list[str]) -> tuple[Path, Path]:
        """Write the server's certificate for ``hosts`` (names or addresses) and its key; return both paths."""
        write_secret(directory / "server.key", key_pem(new_key()))
        self.reissue_server(directory, hosts)
        return directory / "server.crt", directory / "server.key"

    def reissue_server(self, directory: Path, hosts: list[str]) -> None:
        """Write another certificate for the server's key: whoever reads both files finds two that belong together."""
        key, issuer = load_key(directory / "server.key").public_key(), self._server_issuer
        builder = _builder("novacron-server", issuer.certificate.subject, SERVER_DAYS, self._clock())
        write_secret(directory / "server.crt", _sign(issuer, builder, key, hosts, client=False))

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
        builder = _builder(name, self._issuer.certificate.subject, NODE_DAYS, self._clock())
        return _sign(self._issuer, builder, key, [node_host(name)], client=True)


def _root(key: Key) -> bytes:
    secret = key.private_numbers().private_value.to_bytes(32, "big")
    return hmac.digest(b"novacron", secret, "sha256")


def _sign(
    issuer: Issuer, builder: x509.CertificateBuilder, key: ec.EllipticCurvePublicKey, hosts: list[str], *, client: bool
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
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()),
            critical=False,
        )
        .sign(issuer.key, hashes.SHA256())
    )
    return _pem(certificate)


def new_authority(now_s: float) -> tuple[bytes, bytes]:
    """Return the key and the certificate of another CA (PEM)."""
    key = new_key()
    return key_pem(key), _self_signed(key, now_s)


def renewed_authority(ca_key: bytes, now_s: float) -> bytes:
    """Return another certificate of a CA of ``new_authority``, for the same key. Raises ValueError."""
    return _self_signed(_key_of(ca_key), now_s)


def issue_host(
    ca_key: bytes, ca: bytes, name: str, hosts: list[str], now_s: float | None = None
) -> tuple[bytes, bytes]:
    """Return a key and a certificate for ``hosts`` (names or addresses) from a CA of ``new_authority``, which lasts as
    long as a CA does. Raises ValueError."""
    issuer, key = Issuer(x509.load_pem_x509_certificate(ca), _key_of(ca_key)), new_key()
    builder = _builder(name, issuer.certificate.subject, CA_DAYS, time.time() if now_s is None else now_s)
    return key_pem(key), _sign(issuer, builder, key.public_key(), hosts, client=True)


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
    return _pem(certificate)


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


def use_files(context: ssl.SSLContext, ca: Path, certificate: Path, key: Path) -> None:
    """Let a context in use show and trust what its files have by now. What it has trusted before, it still does: see
    ``peer_issuer``. Raises OSError."""
    context.load_verify_locations(ca)
    context.load_cert_chain(certificate, key)


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


def public_key_hash(key: CertificatePublicKeyTypes) -> str:
    """Return what tells a public key from others."""
    format_ = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, format_)).hexdigest()


def key_hash(certificate: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """Return what tells the key of a certificate, or of a request for one, from others."""
    return public_key_hash(certificate.public_key())


def authority_hash(ca_pem: bytes) -> str:
    """Return ``key_hash`` of a certificate (PEM), the first one of several. Raises ValueError."""
    return key_hash(x509.load_pem_x509_certificate(ca_pem))


def authority_hashes(ca_pem: bytes) -> tuple[str, ...]:
    """Return ``key_hash`` of each CA in a file (PEM), the issuing one first. Raises ValueError."""
    return tuple(key_hash(certificate) for certificate in x509.load_pem_x509_certificates(ca_pem))


def trust_mark(authorities: Sequence[str]) -> str:
    """Return what tells a set of trusted CAs, named by ``key_hash``, from others."""
    return hashlib.sha256(",".join(sorted(authorities)).encode()).hexdigest()[:16]


def issuer_of(certificate: x509.Certificate, authorities: Sequence[x509.Certificate]) -> str:
    """Return ``key_hash`` of which of these CAs has issued a certificate; empty: none of them."""
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return key_hash(authority)
    return ""


def pem_issuer_of(cert_pem: bytes, ca_pem: bytes) -> str:
    """Return ``issuer_of`` of a certificate among the CAs in a file (all PEM). Raises ValueError."""
    return issuer_of(x509.load_pem_x509_certificate(cert_pem), x509.load_pem_x509_certificates(ca_pem))


def peer_issuer(ssl_object: ssl.SSLObject | ssl.SSLSocket, authorities: Sequence[x509.Certificate]) -> str:
    """Return ``issuer_of`` of the peer's certificate."""
    return issuer_of(_peer_certificate(ssl_object), authorities)


def _peer_certificate(ssl_object: ssl.SSLObject | ssl.SSLSocket) -> x509.Certificate:
    der = ssl_object.getpeercert(binary_form=True)
    if der is None:
        raise ssl.SSLError("the peer has shown no certificate")
    return x509.load_der_x509_certificate(der)


def peer_key_hash(ssl_object: ssl.SSLObject | ssl.SSLSocket) -> str:
    """Return ``key_hash`` of the peer's verified certificate."""
    return key_hash(_peer_certificate(ssl_object))


def peer_validity(ssl_object: ssl.SSLObject | ssl.SSLSocket) -> Validity:
    """Return from when until when the peer's certificate is valid."""
    return _validity(_peer_certificate(ssl_object))


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
