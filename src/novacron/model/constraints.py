"""Placement constraints: labels and taints of nodes, affinity and anti-affinity groups of VMs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model import limits

LABEL_PATTERN = r"^[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?\Z"

LabelKey = Annotated[str, Meta(pattern=LABEL_PATTERN)]
LabelValue = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{0,63}\Z")]
Labels = Annotated[dict[LabelKey, LabelValue], Meta(max_length=limits.LABELS_MAX)]
GroupName = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")]
Overcommit = Annotated[float, Meta(ge=0.1, le=limits.OVERCOMMIT_MAX)]


class Effect(StrEnum):
    """What a taint does to VMs that do not tolerate it."""

    NO_SCHEDULE = "no-schedule"
    """No such VM is placed there."""
    AVOID = "avoid"
    """Such a VM is placed there only if no other node can take it."""


class Taint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A reason to keep VMs away from a node. VMs that tolerate its key may be placed there."""

    key: LabelKey
    effect: Effect = Effect.NO_SCHEDULE


Taints = Annotated[tuple[Taint, ...], Meta(max_length=limits.TAINTS_MAX)]


class AntiAffinityScope(StrEnum):
    """What VMs of an anti-affinity group never share: a node, a zone or a site."""

    NODE = "node"
    ZONE = "zone"
    SITE = "site"


class Placement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a VM may be placed. VMs that name the same group belong to it."""

    labels: Labels = {}
    """The VM's node must have all of these."""
    tolerations: Annotated[tuple[LabelKey, ...], Meta(max_length=limits.TAINTS_MAX)] = ()
    """Keys of taints that do not keep the VM away from a node."""
    affinity: GroupName | None = None
    """VMs of this group share one node. Members on cordoned nodes are disregarded."""
    anti_affinity: GroupName | None = None
    """No two VMs of this group share a node, zone or site: see ``anti_affinity_scope``."""
    anti_affinity_scope: AntiAffinityScope = AntiAffinityScope.NODE
    spread: GroupName | None = None
    """VMs of this group are spread as evenly as room allows: over sites, then zones, then nodes."""
