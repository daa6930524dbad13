"""Processors as guests see them: what a node can give, and what all nodes can."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

CpuFlag = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
FLAGS_MAX = 64
NAMED_MAX = 5


class CpuKind(StrEnum):
    """Which processor a guest has, from its first start on."""

    BASELINE = "baseline"
    """What every node of the cluster can give: it can move to any of them."""
    HOST = "host"
    """All that the node of its first start can give: it can move to nodes that have as much."""


class CpuModel(msgspec.Struct, frozen=True):
    """A processor. ``flags`` are QEMU's names of its features, sorted."""

    vendor: str
    family: int
    model: int
    stepping: int
    flags: tuple[str, ...]

    def lacks(self, flags: Iterable[str]) -> list[str]:
        """Return which of these flags it does not have."""
        return sorted(set(flags) - set(self.flags))

    def cannot_be(self, other: CpuModel) -> str | None:
        """Say why a guest with another processor can't run on this one, or None if it can."""
        if self.vendor != other.vendor:
            return f"its processor is one of {self.vendor}, not of {other.vendor}"
        missing = self.lacks(other.flags)
        return f"its processor lacks {named(missing)}" if missing else None

    def without(self, masked: Iterable[str]) -> CpuModel:
        return msgspec.structs.replace(self, flags=tuple(sorted(set(self.flags) - set(masked))))

    def with_flags(self, more: Iterable[str]) -> CpuModel:
        return msgspec.structs.replace(self, flags=tuple(sorted({*self.flags, *more})))


def named(flags: list[str]) -> str:
    """Return a few of these flags' names, and how many there are beyond."""
    more = f" and {len(flags) - NAMED_MAX} more" if len(flags) > NAMED_MAX else ""
    return ", ".join(flags[:NAMED_MAX]) + more


def baseline(every: Iterable[CpuModel], like: CpuModel) -> CpuModel:
    """Return what all processors of one vendor have in common; those of others take no guests of theirs."""
    same = [cpu for cpu in every if cpu.vendor == like.vendor] or [like]
    family, model, stepping = min((cpu.family, cpu.model, cpu.stepping) for cpu in same)
    flags = frozenset.intersection(*(frozenset(cpu.flags) for cpu in same))
    return CpuModel(like.vendor, family, model, stepping, tuple(sorted(flags)))
