"""Why an object is not yet as it was asked to be: a code for programs and events, beside the words for people. Pure."""

from __future__ import annotations

import errno
from enum import StrEnum

from novacron.model.errors import NoCapacity, NovaError, QuotaExceeded


class WaitCode(StrEnum):
    """What keeps an object from what was asked: its ``reason_code``, and the reason of an event when it begins."""

    UNPLACED = "Unplaced"
    """No node can take it."""
    NODE_LOST = "NodeLost"
    """Its node is not connected."""
    NODE_REMOVED = "NodeRemoved"
    """Its node was removed."""
    NODE_CANT_STORE = "NodeCantStore"
    """Its node can't write: its disk is read-only or fails."""
    NO_SPACE = "NoSpace"
    """There is no room for it where it is to be."""
    IMAGE_MISSING = "ImageMissing"
    """Its node does not hold the image: that is on its way from another node, or nowhere."""
    LEASE_ENDED = "LeaseEnded"
    """Its node may run no highly available VM before the control plane has acknowledged a heartbeat."""
    MAY_BE_ELSEWHERE = "MayBeElsewhere"
    """An older database was put back: another node that was not heard since may have the VM."""
    NETWORK_NOT_READY = "NetworkNotReady"
    """A network can't be set up on a node."""
    START_QUEUED = "StartQueued"
    """Other VMs of its node start first."""
    DISK_LOST = "DiskLost"
    """The host that had its disk was replaced."""
    DISK_BEING_MADE = "DiskBeingMade"
    """A clone waits for its disk, or a new VM for its further disks."""
    DISK_BEING_COPIED = "DiskBeingCopied"
    """It goes back to its snapshot once its disk is copied."""
    DISK_FULL = "DiskFull"
    """It is paused until its disk has room."""
    CRASH_BACK_OFF = "CrashBackOff"
    """It starts again after a pause, because it has crashed."""
    CANT_GROW = "CantGrow"
    """The guest does not take processors or memory that were added, or does not use them."""
    CANT_SHRINK = "CantShrink"
    """The guest does not give memory back."""
    GUEST_CLOCK_BEHIND = "GuestClockBehind"
    """It stood still, and its guest's clock was not set since, or is wrong though it was."""
    MEMORY_FOLLOWS = "MemoryFollows"
    """It runs while its memory is still on its way."""
    STEP_FAILED = "StepFailed"
    """What its node does for it fails, and is tried again ever later."""
    POOL_AWAY = "PoolAway"
    """Its node does not have the pool, or the pool is not mounted."""
    FILE_LOST = "FileLost"
    """Its file is gone."""
    GUEST_HOLDS_IT = "GuestHoldsIt"
    """The guest does not let go of it."""
    FILE_REFUSED = "FileRefused"
    """The file is no disk that can be taken."""
    DIGEST_WRONG = "DigestWrong"
    """The file does not have the checksum that was given."""
    SOURCE_UNREACHABLE = "SourceUnreachable"
    """The file can't be read or fetched from where it is."""
    ABORTED = "Aborted"
    """A user has aborted it."""
    VM_GONE = "VmGone"
    """Its VM is no longer on the node."""
    VM_OFF = "VmOff"
    """Its VM has to run for this, and does not."""
    GUEST_SILENT = "GuestSilent"
    """The guest agent does not answer."""
    DOES_NOT_FIT = "DoesNotFit"
    """The VM is no longer as it was when its memory was kept."""
    NO_GATEWAY = "NoGateway"
    """No node can be the network's gateway."""
    PORT_IN_USE = "PortInUse"
    """The gateway's host itself listens at the port."""
    PORT_NOT_ALLOWED = "PortNotAllowed"
    """The port is outside the range that the gateway's site allows."""
    NOT_ROUTED = "NotRouted"
    """The address is on no subnet of the gateway's host: it has to be routed there."""
    RULES_REFUSED = "RulesRefused"
    """The rules for it are refused by the gateway's host, so nothing comes in that way."""
    INTERFACE_CLOSED = "InterfaceClosed"
    """The rules for an interface are refused, so it takes no traffic."""
    QUOTA_EXCEEDED = "QuotaExceeded"
    """The project's quota does not allow it."""
    REFUSED = "Refused"
    """What it is to have, or to do next, is refused as things are now."""
    MIGRATION_QUEUED = "MigrationQueued"
    """Its nodes, or the links between them, carry as many moves as they may."""
    MOVE_REFUSED = "MoveRefused"
    """The VM can't be moved now."""
    MOVE_FAILED = "MoveFailed"
    """The VM's move has failed; it is tried again after a pause."""
    WOULD_NOT_CONVERGE = "WouldNotConverge"
    """The guest writes to memory too fast to be moved, and is left where it is."""
    BLOCKED = "Blocked"
    """Nothing moves, and no VM that is left can."""
    TIME_LIMIT = "TimeLimit"
    """It did not end within its time limit."""


W = WaitCode
OF_ERRNO = {
    errno.ENOSPC: W.NO_SPACE, errno.EDQUOT: W.NO_SPACE, errno.EFBIG: W.NO_SPACE,
    errno.EROFS: W.NODE_CANT_STORE, errno.EIO: W.NODE_CANT_STORE,
}  # fmt: skip
CAUSES_MAX = 8


def refusal_code(error: Exception) -> WaitCode:
    """Return the code of what the control plane refuses: the error's own ``hinders``, or what kind of error it is."""
    own = getattr(error, "hinders", None)
    if isinstance(own, WaitCode):
        return own
    if isinstance(error, NoCapacity):
        return W.UNPLACED
    if isinstance(error, QuotaExceeded):
        return W.QUOTA_EXCEEDED
    return W.REFUSED if isinstance(error, NovaError) else code_of(error)


def code_of(error: BaseException) -> WaitCode:
    """Return the code of an error: its own ``code``, or what the system said, of it or of what caused it."""
    current: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if current is None:
            break
        code = getattr(current, "code", None)
        if isinstance(code, WaitCode):
            return code
        if isinstance(current, OSError) and current.errno in OF_ERRNO:
            return OF_ERRNO[current.errno]
        current = current.__cause__
    return W.STEP_FAILED
