"""Processors as guests see them: what a node can offer, and what all nodes have in common."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

CpuFlag = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,39}\Z")]
VendorName = Annotated[str, Meta(pattern=r"^[ A-Za-z0-9!._-]{0,12}\Z")]
FlagName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z")]
"""As nodes report them, and other nodes give them to QEMU: nothing that its options would read as another one."""
FLAGS_MAX = 64
NAMED_MAX = 5


class CpuKind(StrEnum):
    """The processor model that a guest gets at its first start, and keeps."""

    BASELINE = "baseline"
    """The features that all nodes of the cluster have in common: the VM can migrate to any of them."""
    HOST = "host"
    """All features of the node on which it first starts: the VM can migrate only to nodes that have them too."""


class CpuModel(msgspec.Struct, frozen=True):
    """A processor model. ``flags`` are its features by QEMU's names, sorted."""

    vendor: VendorName
    family: int
    model: int
    stepping: int
    flags: tuple[FlagName, ...]

    def lacks(self, flags: Iterable[str]) -> list[str]:
        """Return those of the flags that this processor lacks."""
        return sorted(set(flags) - set(self.flags))

    def cannot_be(self, other: CpuModel) -> str | None:
        """Return why a guest with the processor ``other`` can't run on this one, or None if it can."""
        if self.vendor != other.vendor:
            return f"its processor is one of {self.vendor}, not of {other.vendor}"
        missing = self.lacks(other.flags)
        return f"its processor lacks {named(missing)}" if missing else None

    def without(self, masked: Iterable[str]) -> CpuModel:
        return msgspec.structs.replace(self, flags=tuple(sorted(set(self.flags) - set(masked))))

    def with_flags(self, more: Iterable[str]) -> CpuModel:
        return msgspec.structs.replace(self, flags=tuple(sorted({*self.flags, *more})))


def named(flags: list[str]) -> str:
    """Return the first few of these flags, and how many more there are."""
    more = f" and {len(flags) - NAMED_MAX} more" if len(flags) > NAMED_MAX else ""
    return ", ".join(flags[:NAMED_MAX]) + more


def baseline(every: Iterable[CpuModel], like: CpuModel) -> CpuModel:
    """Return what all processors of the vendor of ``like`` have in common. Guests can't move between vendors."""
    same = [cpu for cpu in every if cpu.vendor == like.vendor] or [like]
    family, model, stepping = min((cpu.family, cpu.model, cpu.stepping) for cpu in same)
    flags = frozenset.intersection(*(frozenset(cpu.flags) for cpu in same))
    return CpuModel(like.vendor, family, model, stepping, tuple(sorted(flags)))
