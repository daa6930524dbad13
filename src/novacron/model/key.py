"""The platform's own keys: the certificate authority's, and those from which all other secrets are derived."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec


class KeyName(StrEnum):
    """A key of the platform."""

    CA = "ca"
    """Issues the certificates of servers and nodes."""
    PAGE = "page"
    """Makes the digests of memory pages, for each project others."""
    SEAL = "seal"
    """Signs what browsers carry: logins on their way, and marks of browsers that a user has logged in with."""
    IDEMPOTENCY = "idempotency"
    """Makes the digests by which a repeated request is recognized."""
    FACTOR = "factor"
    """Seals the secrets that users' apps for second factors share with the platform. They are sealed anew while it is
    rotated."""


class KeyPhase(StrEnum):
    """How far the rotation of a key is."""

    STEADY = "steady"
    """There is one generation."""
    SPREADING = "spreading"
    """The new generation is accepted, and not used yet: all servers, and of the CA all nodes, get to know it first."""
    OVERLAPPING = "overlapping"
    """The new generation is used, and the one before is accepted."""
    RETIRING = "retiring"
    """The CA before issues nothing that is in use; servers stop to trust it."""


class ServerKey(msgspec.Struct, frozen=True):
    """A key of the platform, as the API shows it. Nobody sees the key itself."""

    name: KeyName
    generation: int
    """The one in use. The first one is 1."""
    phase: KeyPhase
    created_at: datetime
    """When the generation in use was created."""
    generations: tuple[int, ...]
    """All that are accepted, the newest first."""
    waits_for: tuple[str, ...] = ()
    """What keeps the rotation from going on or from being finished."""

    @property
    def id(self) -> str:
        return self.name


def phase_of(newest_used: bool, generations: int, retiring: bool) -> KeyPhase:
    """Return how far a rotation is: whether the newest of ``generations`` is used, and the oldest is being retired."""
    if generations < 2:
        return KeyPhase.STEADY
    if not newest_used:
        return KeyPhase.SPREADING
    return KeyPhase.RETIRING if retiring else KeyPhase.OVERLAPPING
