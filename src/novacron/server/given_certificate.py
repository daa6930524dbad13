"""A certificate for the API that somebody else has issued: looked at before it is taken into use."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from novacron import pki
from novacron.model.errors import InvalidInput

CERTIFICATE, KEY, AUTHORITY = "tls-certificate", "tls-key", "tls-authority"


class GivenCertificate(msgspec.Struct, frozen=True):
    """Its files (PEM): the certificate with those between it and its authority, its key, and the authority, which is
    None if every machine trusts it already."""

    certificate: Path
    key: Path
    authority: Path | None = None

    def check(self, host: str) -> list[str]:
        """Return what is wrong with it that a server can go on with, in words. ``host``: the name or address by which
        users reach the API. Raises InvalidInput where nobody could be served with it."""
        chain = _certificates(self.certificate, CERTIFICATE)
        if _public_bytes(chain[0]) != self._public_bytes_of_key():
            raise InvalidInput(f"{self.key} is not the key of {self.certificate}", field=KEY)
        if self.authority is not None and not _vouches(_certificates(self.authority, AUTHORITY), chain[-1]):
            raise InvalidInput(
                f"{self.authority} has not issued the last certificate in {self.certificate}", field=AUTHORITY,
                hint=f"add the intermediate certificates to {self.certificate}, after its first",
            )  # fmt: skip
        objection = pki.validity(self.certificate.read_bytes()).objection(time.time())
        troubles = [] if objection is None else [f"{self.certificate} {objection}"]
        names = _names(chain[0])
        if not any(_covers(name, host) for name in names):
            troubles.append(
                f"{self.certificate} is for {', '.join(names) or 'no name'}, but users reach the API as {host}:"
                " see --advertise"
            )
        return troubles

    def trust(self) -> str:
        """Return whom clients of the API have to trust (PEM); empty: whom their machines trust. Raises OSError."""
        return "" if self.authority is None else self.authority.read_text()

    def _public_bytes_of_key(self) -> bytes:
        try:
            if self.key.stat().st_mode & stat.S_IROTH:
                raise InvalidInput(
                    f"every user of this machine can read {self.key}", field=KEY,
                    hint=f"chmod o= {self.key}, and let the server's group read it",
                )  # fmt: skip
            key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        except OSError as error:
            raise _unreadable(error, self.key, KEY) from None
        except TypeError:
            raise InvalidInput(
                f"{self.key} is protected by a password", field=KEY, hint="remove the password"
            ) from None
        except (ValueError, UnsupportedAlgorithm):
            raise InvalidInput(f"{self.key} is not a private key (PEM)", field=KEY) from None
        return _der(key.public_key())


def _certificates(path: Path, field: str) -> list[x509.Certificate]:
    """Raises InvalidInput."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise _unreadable(error, path, field) from None
    except ValueError:
        raise InvalidInput(f"there is no certificate (PEM) in {path}", field=field) from None


def _unreadable(error: OSError, path: Path, field: str) -> InvalidInput:
    return InvalidInput(
        f"can't read {path}: {error.strerror}",
        field=field,
        hint="make the file and its directory readable for the server's user",
    )


def _public_bytes(certificate: x509.Certificate) -> bytes:
    return _der(certificate.public_key())


def _der(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]  # every kind of public key has it
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def _vouches(authorities: list[x509.Certificate], last: x509.Certificate) -> bool:
    """Say whether one of these is a certificate, or has issued it."""
    for authority in authorities:
        if authority == last:
            return True
        try:
            last.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _covers(name: str, host: str) -> bool:
    """Say whether a name of a certificate, perhaps with a first label ``*``, stands for a host (RFC 6125, 6.4.3)."""
    if name.startswith("*."):
        first, _, rest = host.partition(".")
        return bool(first) and rest.lower() == name[2:].lower()
    return name.lower() == host.lower()
