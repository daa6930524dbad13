"""What histories are about: each has acts of its own beside those that all have, so that none has to do everything."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple


class Theme(StrEnum):
    """What a history is about."""

    KILLS = "kills"
    LEASES = "leases"
    """A node is away for longer than its lease lasts, so that its highly available VMs fail over."""
    COPIES = "copies"
    """Agents work from copies of state folders."""
    CERTIFICATES = "certificates"


class Has(NamedTuple):
    """What sets the histories of a theme apart."""

    chance: int
    """Relative to others'."""
    acts: Mapping[str, int] = MappingProxyType({})
    """Further acts, and their weights."""
    without: frozenset[str] = frozenset()
    """Acts that it does not have."""


OTHERS_FAIL = frozenset(
    {"_kills_server", "_kills_postgres", "_backs_database_up", "_puts_database_back", "_kills_agent", "_pulls_cable",
     "_cuts_management", "_moves_folder_away", "_removes_folder", "_puts_folder_back"}
)  # fmt: skip
"""With these, nobody takes over: the server, or those by whose word it does, have not been there for long enough."""
THEMES = {
    Theme.KILLS: Has(3),
    Theme.LEASES: Has(3, without=OTHERS_FAIL),
    Theme.COPIES: Has(
        3, {"_starts_copy_beside": 6, "_starts_copy_elsewhere": 4, "_moves_to_spare": 5, "_ends_copies": 3}
    ),
    Theme.CERTIFICATES: Has(1, {"_ends_certificate": 8, "_rejoins": 5}),
}
