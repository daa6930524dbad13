"""Where VMs may go: what nodes are called, what keeps VMs away from them, and which VMs belong together or apart."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model import limits

LABEL_PATTERN = r"^[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?$"

LabelKey = Annotated[str, Meta(pattern=LABEL_PATTERN)]
LabelValue = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{0,63}$")]
Labels = Annotated[dict[LabelKey, LabelValue], Meta(max_length=limits.LABELS_MAX)]
GroupName = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Overcommit = Annotated[float, Meta(ge=0.1, le=limits.OVERCOMMIT_MAX)]


class Effect(StrEnum):
    """What a taint does to VMs that do not tolerate it."""

    NO_SCHEDULE = "no-schedule"
    """They are not placed there."""
    AVOID = "avoid"
    """They are placed there only if no other node takes them."""


class Taint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A reason to keep VMs away from a node; those that tolerate its key may go there."""

    key: LabelKey
    effect: Effect = Effect.NO_SCHEDULE


Taints = Annotated[tuple[Taint, ...], Meta(max_length=limits.TAINTS_MAX)]


class AntiAffinityScope(StrEnum):
    """Within what VMs of an anti-affinity group are never together."""

    NODE = "node"
    ZONE = "zone"
    SITE = "site"


class Placement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a VM may be placed. Groups are names that VMs share."""

    labels: Labels = {}
    """Its node must have them."""
    tolerations: Annotated[tuple[LabelKey, ...], Meta(max_length=limits.TAINTS_MAX)] = ()
    """Taints that do not keep it away."""
    affinity: GroupName | None = None
    """VMs of this group are on one node. A member on a node that is cordoned holds no other back."""
    anti_affinity: GroupName | None = None
    """No two VMs of this group are on one node, or in one zone or site."""
    anti_affinity_scope: AntiAffinityScope = AntiAffinityScope.NODE
    spread: GroupName | None = None
    """VMs of this group are spread as evenly as there is room: over sites, then zones, then nodes."""
