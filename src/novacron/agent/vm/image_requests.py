"""Images that a VM waits for, asked of the control plane at growing intervals: it may have none to give."""

from __future__ import annotations

from novacron.agent.vm.context import VmContext
from novacron.dwcp.backoff import Backoff
from novacron.wire import messages as wire

FIRST_S, MAX_S = 2.0, 60.0


class ImageRequests:
    """Those of one VM."""

    def __init__(self, context: VmContext) -> None:
        self._services = context.services
        self._backoff, self._next_at = Backoff(FIRST_S, MAX_S), 0.0

    def lacks(self, name: str, digest: str | None) -> str | None:
        """Return why the VM can't start with this image, having asked for it, or None if it can."""
        held = self._services.images.get(name)
        if held is None:
            self.ask(name)
            return f"waits for image {name} from another node"
        if held.is_(digest):
            return None
        return (
            f"the image {name} on its node is not the one that it was created from:"
            f" remove it there: novacron image delete {name} --node NODE"
        )

    def ask(self, name: str) -> None:
        """Ask for an image, unless that was done a moment ago."""
        now = self._services.clock.monotonic()
        if now >= self._next_at:
            self._services.send(wire.ImageMissing(name))
            self._next_at = now + self._backoff.next_s()

    def resync(self) -> None:
        """The link is new: ask at once."""
        self._next_at = 0.0

    def reset(self) -> None:
        """All images are there."""
        self._next_at = 0.0
        self._backoff.reset()
