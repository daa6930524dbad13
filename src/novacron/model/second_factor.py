"""Second factors: what a user proves after the password."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

FACTORS_PER_USER_MAX = 10
RECOVERY_CODES = 10
CODE_BYTES = 10
"""Of a recovery code: 80 random bits, so a fast hash is enough."""
TOTP_STEP_S, TOTP_DRIFT_STEPS = 30, 1
"""How long a code of an authenticator app is shown, and by how many of them its clock may be off."""
LOGIN_STEP_S, LOGIN_STEP_TRIES_MAX = 300, 5
"""How long, and how often, the second factor may be tried after one password."""
WRONG_IN_A_ROW_MAX = 100
"""Wrong codes since the last good login after which codes of apps are refused, until a security key or a recovery code
is used, or an administrator resets."""

FactorName = Annotated[str, Meta(min_length=1, max_length=63)]


class FactorKind(StrEnum):
    """What proves, beside the password, who logs in."""

    TOTP = "totp"
    """Six digits of an authenticator app (RFC 6238)."""
    WEBAUTHN = "webauthn"
    """A security key or passkey (W3C Web Authentication)."""


class SecondFactor(msgspec.Struct, frozen=True):
    """A second factor of a user, without its secret."""

    id: str
    kind: FactorKind
    name: str
    created_at: datetime
    used_at: datetime | None


class SecondFactors(msgspec.Struct, frozen=True):
    """A user's second factors. ``required``: without one, a login with the password alone has no rights."""

    items: list[SecondFactor]
    recovery_codes: int
    """How many are left."""
    required: bool
    locked: bool
    """Codes of apps are refused, because too many were wrong."""


def new_recovery_code() -> str:
    """Return a code such as ``3f0a9-c51b2-d4e77-0a1b2``."""
    digits = secrets.token_hex(CODE_BYTES)
    return "-".join(digits[n : n + 5] for n in range(0, len(digits), 5))


def recovery_hash(code: str) -> bytes:
    """Return the hash by which a recovery code is known, however its groups were separated."""
    return hashlib.sha256(code.replace("-", "").replace(" ", "").strip().lower().encode(errors="replace")).digest()


def totp_steps(now_s: float) -> range:
    """Return the steps whose codes are accepted at a moment."""
    step = int(now_s // TOTP_STEP_S)
    return range(step - TOTP_DRIFT_STEPS, step + TOTP_DRIFT_STEPS + 1)
