"""Proofs of backups: a VM is made of the backup, connected to nothing, and has to start."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model import limits
from novacron.model.guest_command import Argument

TIMEOUT_S_MIN, TIMEOUT_S_MAX = 10, 7200
WAITING_S_MAX, RESTORING_S_MAX = 86_400.0, 86_400.0
"""How long a proof may wait for its turn, or for room on the node, and how long its disk may take to be made."""
UNRESTORABLE_S_MAX = 600.0
"""How long a disk that can't be made is tried again: meanwhile its node proves nothing else."""
PICTURE_BYTES_MAX = 256 * 1024
"""A larger picture of a screen is not kept."""

SerialText = Annotated[str, Meta(max_length=200, pattern=r"^[\x20-\x7e]*\Z")]
ProofTimeout = Annotated[int, Meta(ge=TIMEOUT_S_MIN, le=TIMEOUT_S_MAX)]


class ProofProbe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What shows that the VM has started. All given conditions must hold; default: the guest agent answers."""

    command: Annotated[tuple[Argument, ...], Meta(max_length=limits.GUEST_ARGUMENTS_MAX)] = ()
    """A program in the guest, with its arguments, that ends with exit code 0. The guest agent starts it, without a
    shell, again and again until it does."""
    line: SerialText = ""
    """A text that the guest prints on its serial line."""
    timeout_s: ProofTimeout = 600
    """How long it may take, from the moment when the VM runs."""

    @property
    def asks_agent(self) -> bool:
        """Say whether the guest's agent has to answer."""
        return bool(self.command) or not self.line


class ProofPhase(StrEnum):
    """How far a proof is."""

    WAITING = "waiting"
    RESTORING = "restoring"
    """The VM's disk is being made of the backup."""
    STARTING = "starting"
    """The VM runs, and has not shown yet what it is to show."""
    PROVED = "proved"
    FAILED = "failed"


UNDER_WAY = frozenset({ProofPhase.WAITING, ProofPhase.RESTORING, ProofPhase.STARTING})


class BackupProof(msgspec.Struct, frozen=True):
    """The last proof of a backup."""

    phase: ProofPhase
    probe: ProofProbe
    asked_at: datetime
    since: datetime
    """When it came into its phase."""
    vm: str = ""
    """Id of the VM that was made of the backup; it is deleted when the proof ends."""
    start_s: float | None = None
    """How long it took from when the VM ran until it had shown what it was to show."""
    answer: str = ""
    """What the guest said. It may say anything."""
    error: str = ""
    """Why the backup is not proved, or what the proof waits for."""
    reason_code: str = ""
    """The same for programs: a ``WaitCode``; empty while nothing keeps it, or if the guest has not shown what it was
    to show."""
    picture: bool = False
    """There is a picture of the VM's screen, as it was at the end."""
