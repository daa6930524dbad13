# Made of aio/keys.py by script/generate: change that, and run it.
"""Calls about the platform's own keys."""

from __future__ import annotations

from novacron.client.protocol import Object
from novacron.client.sync.connection import Connection


class KeyCalls(Connection):
    """The platform's keys and their rotation; ``list("keys")`` shows them."""

    def rotate_key(self, name: str) -> Object:
        """Begin to rotate a key: ``ca``, ``page``, ``seal`` or ``idempotency``."""
        return self.act("keys", name, "rotate")

    def finish_key(self, name: str, *, force: bool = False) -> Object:
        """Finish the rotation of a key; ``force``: although something needs the generation before."""
        return self.act("keys", name, "finish", {"force": force})

    def authority(self) -> str:
        """Return the certificates of the authorities to trust (PEM)."""
        answered: Object = self.request("GET", "/api/v1/authority")
        return str(answered["ca"])
