"""Messages about measurements of the path between two nodes."""

from __future__ import annotations

from novacron.model.finite import Finite
from novacron.model.probe import MoveForeseen, PathMeasured
from novacron.wire.base import Reply, Request, over_key, ready_key, settled_keys


class ProbeExpected(Request, frozen=True):
    """Another node will send a probe here."""

    probe: str
    peer: str
    seconds: Finite

    @property
    def reply_key(self) -> str:
        return ready_key(self.probe)


class ProbeReady(Reply, frozen=True):
    """This node expects the probe."""

    probe: str

    @property
    def replies_to(self) -> tuple[str, ...]:
        return (ready_key(self.probe),)


class ProbeWanted(Request, frozen=True):
    """Measure the path to another node, which waits at ``endpoint``."""

    probe: str
    peer: str
    endpoint: str
    seconds: Finite
    vm: str | None = None
    """Foresee the move of this VM, too."""
    rate_bytes_per_s: int | None = None
    """Use no more of the link than so much."""

    @property
    def reply_key(self) -> str:
        return over_key(self.probe)


class Probed(Reply, frozen=True):
    """What a probe found, or why it found nothing."""

    probe: str
    found: PathMeasured | None
    foreseen: MoveForeseen | None = None
    """If the move of a VM was to be foreseen."""

    @property
    def replies_to(self) -> tuple[str, ...]:
        return settled_keys(self.probe, self.error)
