"""Why a VM is not yet as it was asked to be: a code for programs and events, beside the words for people. Pure."""

from __future__ import annotations

from enum import StrEnum


class WaitCode(StrEnum):
    """What keeps a VM waiting. Each is the ``reason_code`` of its status, and the reason of an event when it begins."""

    UNPLACED = "Unplaced"
    """No node can take it."""
    NODE_LOST = "NodeLost"
    """Its node is not connected."""
    NODE_CANT_STORE = "NodeCantStore"
    """Its node can't note durably what it is asked: its disk is full or fails."""
    IMAGE_MISSING = "ImageMissing"
    """Its image is on its way from another node."""
    LEASE_ENDED = "LeaseEnded"
    """Its node may run no highly available VM before the control plane has acknowledged a heartbeat."""
    NETWORK_NOT_READY = "NetworkNotReady"
    START_QUEUED = "StartQueued"
    """Other VMs of its node start first."""
    DISK_LOST = "DiskLost"
    """The host that had its disk was replaced."""
    DISK_BEING_MADE = "DiskBeingMade"
    """A clone waits for its disk."""
    DISK_FULL = "DiskFull"
    """It is paused until its disk has room."""
    CRASH_BACK_OFF = "CrashBackOff"
    CANT_GROW = "CantGrow"
    """The guest does not take processors or memory that were added."""
    MEMORY_FOLLOWS = "MemoryFollows"
    """It runs while its memory is still on its way."""
    STEP_FAILED = "StepFailed"
    """What its node does for it fails, and is tried again ever later."""
