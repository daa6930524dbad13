"""Which devices of this host each VM has."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from novacron.qemu.vfio import DeviceFailed, Vfio


class Passthrough:
    """The devices that may be handed to guests here, and those that are."""

    def __init__(self, vfio: Vfio | None = None) -> None:
        self.vfio = vfio or Vfio()
        self._taken: dict[str, tuple[str, ...]] = {}

    def has(self, vm: str, addresses: Sequence[str]) -> None:
        """A VM that runs has these."""
        self._taken[vm] = tuple(addresses)

    def choose(self, vm: str, ids: Sequence[str], listed: Collection[str]) -> tuple[str, ...]:
        """Return a device for each wanted id that is listed and free. Raises DeviceFailed."""
        taken = {address for other, addresses in self._taken.items() if other != vm for address in addresses}
        free = [address for address in sorted(listed) if address not in taken]
        chosen = []
        for id in ids:
            address = next((candidate for candidate in free if self.vfio.id(candidate) == id), None)
            if address is None:
                raise DeviceFailed(f"no free device {id} is left for VMs on this node")
            free.remove(address)
            chosen.append(address)
        self._taken[vm] = tuple(chosen)
        return tuple(chosen)

    def leave(self, vm: str) -> None:
        """A VM does not run any more: its devices are the host's again."""
        self.vfio.release(self._taken.pop(vm, ()))
