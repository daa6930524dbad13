"""Which node may run a VM: the rule that must never break, as pure functions.

Each VM has an *epoch* and an owning node. Every end of a migration, whatever the outcome, moves the VM to the next
epoch, so one rule covers both sides: **a node's promise at an epoch binds it until it receives a later epoch.** A node
stores the latest epoch that it has received for each VM durably, and never obeys an earlier one.
See docs/architecture.md, "VM ownership".
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

EPOCH_MAX = 2**53


class Claim(StrEnum):
    """A node's claim to a VM, stored on its disk.

    ``none``: no claim, perhaps an epoch. ``owner``: the node may run the VM. ``released``: the node was the owner, has
    stopped the guest for the rest of this epoch, and has voted so. ``incoming``: the node is loading or has loaded the
    VM's memory and must not run it at this epoch.
    """

    NONE = "none"
    OWNER = "owner"
    RELEASED = "released"
    INCOMING = "incoming"


class OwnershipRecord(msgspec.Struct, frozen=True):
    """A node's durable record of one VM: the latest epoch that it has received, and its claim at that epoch."""

    epoch: Annotated[int, Meta(ge=0, le=EPOCH_MAX)] = 0
    claim: Claim = Claim.NONE


class OrderKind(StrEnum):
    """What the control plane tells a node to do with a VM: own it, receive it, or remove it."""

    OWN = "own"
    RECEIVE = "receive"
    GONE = "gone"


class Order(msgspec.Struct, frozen=True):
    """An order to one node about one VM, valid at ``epoch``."""

    kind: OrderKind
    epoch: int


class OrderVerdict(StrEnum):
    """What a node does about an order.

    ``run``: it owns the VM; start it, or resume the guest that was loaded or stopped here. ``receive``: prepare to load
    the VM. ``destroy``: remove every trace. ``hold``: change nothing, because a promise binds the node. ``ignore``: the
    order is stale.
    """

    RUN = "run"
    RECEIVE = "receive"
    DESTROY = "destroy"
    HOLD = "hold"
    IGNORE = "ignore"


def obey(held: OwnershipRecord, order: Order) -> tuple[OwnershipRecord, OrderVerdict]:
    """Return the node's new record and what it may do.

    The record must be durable before the node acts on the verdict.
    """
    if order.epoch < held.epoch:
        return held, OrderVerdict.IGNORE
    later = order.epoch > held.epoch
    match order.kind:
        case OrderKind.OWN:
            if later or held.claim is Claim.OWNER:
                return OwnershipRecord(order.epoch, Claim.OWNER), OrderVerdict.RUN
            # At the same epoch: a promise binds, and a removed VM does not come back.
            return held, OrderVerdict.HOLD
        case OrderKind.RECEIVE:
            if held.claim is Claim.NONE or (held.claim is Claim.INCOMING and not later):
                return OwnershipRecord(order.epoch, Claim.INCOMING), OrderVerdict.RECEIVE
            # The VM of an earlier epoch is still here: remove it before the VM can come back.
            return (
                (OwnershipRecord(order.epoch, Claim.NONE), OrderVerdict.DESTROY)
                if later
                else (held, OrderVerdict.IGNORE)
            )
        case OrderKind.GONE:
            if later or held.claim is Claim.NONE:
                return OwnershipRecord(order.epoch, Claim.NONE), OrderVerdict.DESTROY
            return held, OrderVerdict.HOLD


def release(held: OwnershipRecord, epoch: int) -> OwnershipRecord:
    """Return the record of a source that has stopped its guest and is about to vote at ``epoch``."""
    if held.claim not in (Claim.OWNER, Claim.RELEASED) or held.epoch != epoch:
        raise ValueError(f"cannot release at epoch {epoch}: holds {held.claim} at epoch {held.epoch}")
    return OwnershipRecord(epoch, Claim.RELEASED)


def may_run(held: OwnershipRecord) -> bool:
    """Say whether the node may run the guest."""
    return held.claim is Claim.OWNER
