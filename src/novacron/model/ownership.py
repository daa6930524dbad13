"""Who may run a VM: the rule that must never break, as pure functions.

Each VM has an *epoch* and an owning node. Every end of a migration, whatever the outcome, moves the VM to the
next epoch, so one rule covers both sides: **what a node promised at an epoch binds it until it is shown a later
epoch.** A node remembers, durably, the latest epoch it has been shown for each VM, and never obeys an earlier one.
See docs/architecture.md, "Who owns a VM".
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Claim(StrEnum):
    """What a node has on its disk about a VM.

    ``none``: nothing but perhaps a remembered epoch. ``owner``: it runs the VM, or may. ``released``: it was the
    owner, has stopped the guest for good as far as this epoch goes, and has voted so. ``incoming``: it loads or has
    loaded the VM's memory and must not run it at this epoch.
    """

    NONE = "none"
    OWNER = "owner"
    RELEASED = "released"
    INCOMING = "incoming"


class OwnershipRecord(msgspec.Struct, frozen=True):
    """A node's durable memory of one VM: the latest epoch seen and its claim at that epoch."""

    epoch: int = 0
    claim: Claim = Claim.NONE


class OrderKind(StrEnum):
    """What the control plane says to one node about one VM."""

    OWN = "own"
    RECEIVE = "receive"
    GONE = "gone"


class Order(msgspec.Struct, frozen=True):
    """One statement about one VM for one node, true at ``epoch``."""

    kind: OrderKind
    epoch: int


class OrderVerdict(StrEnum):
    """What the node may do after an order.

    ``run``: it owns the VM; start it, or let what was loaded or stopped here go on. ``receive``: prepare to load.
    ``destroy``: remove every trace. ``hold``: change nothing; a promise binds it. ``ignore``: the order is stale.
    """

    RUN = "run"
    RECEIVE = "receive"
    DESTROY = "destroy"
    HOLD = "hold"
    IGNORE = "ignore"


def obey(held: OwnershipRecord, order: Order) -> tuple[OwnershipRecord, OrderVerdict]:
    """Return what the node remembers from now on and what it may do.

    The returned memory must be durable before the verdict is acted on.
    """
    if order.epoch < held.epoch:
        return held, OrderVerdict.IGNORE
    later = order.epoch > held.epoch
    match order.kind:
        case OrderKind.OWN:
            if later or held.claim is Claim.OWNER:
                return OwnershipRecord(order.epoch, Claim.OWNER), OrderVerdict.RUN
            # At the same epoch: a promise binds, and a VM that was told to go does not come back.
            return held, OrderVerdict.HOLD
        case OrderKind.RECEIVE:
            if held.claim is Claim.NONE or (held.claim is Claim.INCOMING and not later):
                return OwnershipRecord(order.epoch, Claim.INCOMING), OrderVerdict.RECEIVE
            # Something of an earlier epoch is still here: it has to go before the VM can come back.
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
    """Return the memory of a source that has stopped its guest and is about to vote at ``epoch``."""
    if held.claim not in (Claim.OWNER, Claim.RELEASED) or held.epoch != epoch:
        raise ValueError(f"cannot release at epoch {epoch}: holds {held.claim} at epoch {held.epoch}")
    return OwnershipRecord(epoch, Claim.RELEASED)


def may_run(held: OwnershipRecord) -> bool:
    """Say whether the node may let the guest execute."""
    return held.claim is Claim.OWNER
