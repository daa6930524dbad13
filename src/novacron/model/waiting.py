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
    """There is not enough space for it at its destination."""
    IMAGE_MISSING = "ImageMissing"
    """Its node does not hold the image: it is being copied from another node, or no node has it."""
    LEASE_ENDED = "LeaseEnded"
    """Its node must not run highly available VMs until the control plane has acknowledged a heartbeat."""
    MAY_BE_ELSEWHERE = "MayBeElsewhere"
    """An older database was put back: another node that has not connected since may have the VM."""
    NETWORK_NOT_READY = "NetworkNotReady"
    """A network can't be set up on a node."""
    START_QUEUED = "StartQueued"
    """Other VMs on its node start first."""
    DISK_LOST = "DiskLost"
    """The host that had its disk was replaced."""
    DISK_BEING_MADE = "DiskBeingMade"
    """A clone waits for its disk, or a new VM for its other disks."""
    DISK_BEING_COPIED = "DiskBeingCopied"
    """It reverts to its snapshot after its disk is copied."""
    REPOSITORY_AWAY = "RepositoryAway"
    """The backup that it runs from can't be read now; it is paused until it can."""
    DISK_FULL = "DiskFull"
    """It is paused until its disk has free space."""
    CRASH_BACK_OFF = "CrashBackOff"
    """It has crashed, and starts again after a pause."""
    CANT_GROW = "CantGrow"
    """The guest does not accept or use CPUs or memory that were added."""
    CANT_SHRINK = "CantShrink"
    """The guest does not release memory."""
    GUEST_CLOCK_BEHIND = "GuestClockBehind"
    """It was paused, and its guest's clock was not set afterwards, or is still wrong."""
    GUEST_SHUTS_DOWN = "GuestShutsDown"
    """The guest was asked to power off, and has not yet: it is forced off when its time ends."""
    GUEST_REBOOTS = "GuestReboots"
    """The guest was asked to reboot, and has not yet: it is reset when its time ends."""
    RECORD_DAMAGED = "RecordDamaged"
    """Its node can't read its record of the VM, so it leaves the VM as it is until it is started again."""
    ANOTHER_QEMU = "AnotherQemu"
    """A QEMU of a node without an agent runs the VM on the host of its node."""
    MEMORY_FOLLOWS = "MemoryFollows"
    """It runs while its memory is still being transferred."""
    STEP_FAILED = "StepFailed"
    """A step on its node fails, and is retried at growing intervals."""
    POOL_AWAY = "PoolAway"
    """Its node does not have the pool, or the pool is not mounted."""
    FILE_LOST = "FileLost"
    """Its file is gone."""
    GUEST_HOLDS_IT = "GuestHoldsIt"
    """The guest does not release it."""
    FILE_REFUSED = "FileRefused"
    """The file is not a supported disk."""
    DIGEST_WRONG = "DigestWrong"
    """The file's checksum is not the expected one."""
    SOURCE_UNREACHABLE = "SourceUnreachable"
    """The file can't be read or downloaded from its source."""
    ABORTED = "Aborted"
    """A user aborted it."""
    VM_GONE = "VmGone"
    """Its VM is no longer on the node."""
    VM_OFF = "VmOff"
    """Its VM must run for this, and does not."""
    GUEST_SILENT = "GuestSilent"
    """The guest agent does not answer."""
    DOES_NOT_FIT = "DoesNotFit"
    """The VM's hardware has changed since its memory was saved."""
    NO_GATEWAY = "NoGateway"
    """No node can be the network's gateway."""
    PORT_IN_USE = "PortInUse"
    """The gateway's host itself listens on the port."""
    PORT_NOT_ALLOWED = "PortNotAllowed"
    """The port is outside the range that the gateway's site allows."""
    NOT_ROUTED = "NotRouted"
    """The address is on no subnet of the gateway's host: route it there."""
    RULES_REFUSED = "RulesRefused"
    """The gateway's host refuses its firewall rules, so no traffic comes in that way."""
    INTERFACE_CLOSED = "InterfaceClosed"
    """The firewall rules of an interface are refused, so it has no traffic."""
    QUOTA_EXCEEDED = "QuotaExceeded"
    """The project's quota does not allow it."""
    REFUSED = "Refused"
    """Its spec, or its next step, is refused at the moment."""
    MIGRATION_QUEUED = "MigrationQueued"
    """Its nodes, or the links between them, have reached their limit of migrations."""
    MOVE_REFUSED = "MoveRefused"
    """The VM can't be moved now."""
    MOVE_FAILED = "MoveFailed"
    """The VM's migration has failed; it is retried after a pause."""
    WOULD_NOT_CONVERGE = "WouldNotConverge"
    """The guest writes memory too fast to be migrated, and stays where it is."""
    BLOCKED = "Blocked"
    """No VM is moving, and none of the remaining VMs can move."""
    TIME_LIMIT = "TimeLimit"
    """It did not finish within its time limit."""


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
