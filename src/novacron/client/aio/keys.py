"""Calls about the platform's own keys."""

from __future__ import annotations

from novacron.client.aio.connection import AsyncConnection
from novacron.client.protocol import Object


class AsyncKeyCalls(AsyncConnection):
    """The platform's keys and their rotation; ``list("keys")`` shows them."""

    async def rotate_key(self, name: str) -> Object:
        """Begin to rotate a key: ``ca``, ``page``, ``seal`` or ``idempotency``."""
        return await self.act("keys", name, "rotate")

    async def finish_key(self, name: str, *, force: bool = False) -> Object:
        """Finish the rotation of a key; ``force``: although something needs the generation before."""
        return await self.act("keys", name, "finish", {"force": force})

    async def authority(self) -> str:
        """Return the certificates of the authorities to trust (PEM)."""
        answered: Object = await self.request("GET", "/api/v1/authority")
        return str(answered["ca"])
