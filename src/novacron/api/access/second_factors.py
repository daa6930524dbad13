"""Second factors: codes of authenticator apps (TOTP) and security keys (WebAuthn), made and verified by libraries.

``webauthn`` takes 0.2 s to import: only a process that handles a security key loads it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import pyotp
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from novacron.model.access import Role
from novacron.model.errors import InvalidInput, Unavailable
from novacron.model.second_factor import FactorKind, totp_steps
from novacron.model.token import same_secret
from novacron.store.second_factors import StoredFactor

if TYPE_CHECKING:
    from webauthn.helpers.structs import (
        PublicKeyCredentialCreationOptions,
        PublicKeyCredentialDescriptor,
        PublicKeyCredentialRequestOptions,
    )

ISSUER = "NovaCron"
CHALLENGE_BYTES, NONCE_BYTES = 32, 12

Json = dict[str, Any]
"""What browsers' ``navigator.credentials`` takes and gives, as W3C Web Authentication's JSON forms have it."""


class RegisteredKey(NamedTuple):
    """A security key that a user has registered."""

    credential: bytes
    public_key: bytes
    counter: int


def new_challenge() -> bytes:
    return os.urandom(CHALLENGE_BYTES)


class SecondFactorChecks:
    """Makes and verifies second factors. ``keys`` gives those that seal what apps and this platform share, the one in
    use first; ``origin`` is the URL at which browsers reach this installation, which security keys are bound to;
    whoever has one of the roles ``required_of`` must have a second factor."""

    def __init__(
        self, keys: Callable[[], Sequence[bytes]], origin: str, required_of: frozenset[Role] = frozenset(),
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.required_of = required_of
        parts = urlsplit(origin)
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self._host = parts.hostname or "localhost"
        self._keys, self._clock = keys, clock

    def new_app(self, factor: str, user: str) -> tuple[bytes, str, str]:
        """Return the secret of a new app, sealed, as people type it, and as an ``otpauth`` URI."""
        secret = pyotp.random_base32()
        uri = pyotp.TOTP(secret).provisioning_uri(name=user, issuer_name=f"{ISSUER} {self._host}")
        return self._sealed(factor, secret), secret, uri

    def _sealed(self, factor: str, secret: str) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + AESGCM(self._keys()[0]).encrypt(nonce, secret.encode(), factor.encode())

    def _opened(self, factor: StoredFactor) -> tuple[str, bool]:
        """Return an app's secret, and whether it is sealed with the key in use. Raises Unavailable."""
        nonce, sealed = factor.secret[:NONCE_BYTES], factor.secret[NONCE_BYTES:]
        for number, key in enumerate(self._keys()):
            with contextlib.suppress(InvalidTag):
                return AESGCM(key).decrypt(nonce, sealed, factor.id.encode()).decode(), number == 0
        raise Unavailable(
            f"the secret of {factor.name} can't be opened", hint="ask an administrator to reset your second factors"
        )

    @property
    def rotating(self) -> bool:
        """There are secrets that may have been sealed with another key than the one in use."""
        return len(self._keys()) > 1

    def sealed_anew(self, factor: StoredFactor) -> bytes | None:
        """Return an app's secret, sealed with the key in use; None: it is already. Raises Unavailable."""
        secret, current = self._opened(factor)
        return None if current else self._sealed(factor.id, secret)

    def step_of(self, factor: StoredFactor, code: str) -> int | None:
        """Return the step of an app's code, if it is right now; None: it is wrong. Raises Unavailable."""
        secret, _ = self._opened(factor)
        app, digits = pyotp.TOTP(secret), code.replace(" ", "")
        right = [step for step in totp_steps(self._clock()) if same_secret(app.generate_otp(step), digits)]
        return right[-1] if right else None

    def registration(self, challenge: bytes, user: str, name: str, others: Sequence[StoredFactor]) -> Json:
        """Return what a browser needs to register a security key."""
        import webauthn
        from webauthn.helpers.structs import AuthenticatorSelectionCriteria, UserVerificationRequirement

        options = webauthn.generate_registration_options(
            rp_id=self._host, rp_name=ISSUER, user_id=user.encode(), user_name=name, challenge=challenge,
            authenticator_selection=AuthenticatorSelectionCriteria(
                user_verification=UserVerificationRequirement.PREFERRED
            ),
            exclude_credentials=_descriptors(others),
        )  # fmt: skip
        return _json(options)

    def register(self, challenge: bytes, credential: Json) -> RegisteredKey:
        """Return the security key that a browser has registered. Raises InvalidInput."""
        import webauthn

        try:
            done = webauthn.verify_registration_response(
                credential=credential, expected_challenge=challenge, expected_rp_id=self._host,
                expected_origin=self.origin,
            )  # fmt: skip
        except Exception as error:  # whatever the library makes of a stranger's bytes, they are no registration
            raise InvalidInput(f"the security key's answer is not accepted: {error}", field="credential") from None
        return RegisteredKey(done.credential_id, done.credential_public_key, done.sign_count)

    def login(self, challenge: bytes, factors: Sequence[StoredFactor]) -> Json | None:
        """Return what a browser needs to log in with a security key; None: the user has none."""
        keys = _descriptors(factors)
        if not keys:
            return None
        import webauthn
        from webauthn.helpers.structs import UserVerificationRequirement

        return _json(webauthn.generate_authentication_options(
            rp_id=self._host, challenge=challenge, allow_credentials=keys,
            user_verification=UserVerificationRequirement.PREFERRED,
        ))  # fmt: skip

    def counter_of(self, factor: StoredFactor, challenge: bytes, credential: Json) -> int | None:
        """Return how often a security key says that it was used, if its answer is right; None: it is wrong."""
        import webauthn

        try:
            done = webauthn.verify_authentication_response(
                credential=credential, expected_challenge=challenge, expected_rp_id=self._host,
                expected_origin=self.origin, credential_public_key=factor.secret,
                credential_current_sign_count=factor.counter,
            )  # fmt: skip
        except Exception:  # whatever the library makes of a stranger's bytes, they prove nothing
            return None
        return done.new_sign_count if done.credential_id == factor.credential else None


def _descriptors(factors: Sequence[StoredFactor]) -> list[PublicKeyCredentialDescriptor]:
    from webauthn.helpers.structs import PublicKeyCredentialDescriptor

    return [
        PublicKeyCredentialDescriptor(id=factor.credential)
        for factor in factors
        if factor.kind is FactorKind.WEBAUTHN and factor.credential is not None
    ]


def _json(options: PublicKeyCredentialCreationOptions | PublicKeyCredentialRequestOptions) -> Json:
    import webauthn

    made: Json = json.loads(webauthn.options_to_json(options))
    return made
