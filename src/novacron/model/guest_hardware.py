"""The hardware that a running guest has, which may be more or less than it was started with."""

from __future__ import annotations

import msgspec

from novacron.model.plugged import GuestNics


class GuestHardware(msgspec.Struct, frozen=True):
    """The hardware that a running guest has. The QEMU to which it migrates must be set up in the same way."""

    vcpus: int
    memory_mib: int
    """At the start, as ``vcpus`` is: the number of queues of a device, for example, follows from them."""
    vcpus_added: int = 0
    dimms_mib: tuple[int, ...] = ()
    """Memory modules added while the guest ran, in order."""
    balloon: bool = False
    nics: GuestNics | None = None
    """None: an earlier version started it, and its interfaces can't come or go."""

    @property
    def vcpus_in_all(self) -> int:
        return self.vcpus + self.vcpus_added

    @property
    def memory_in_all_mib(self) -> int:
        return self.memory_mib + sum(self.dimms_mib)
