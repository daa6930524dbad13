"""Secrets of projects, as the server's parts ask for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from novacron.model.encryption import DataKey
from novacron.store.database import Connection


class PlainSecrets:
    """Secrets of projects that encrypt nothing."""

    def __init__(self, page_key: Callable[[str], bytes] = lambda _: b"k" * 32) -> None:
        self._page_key = page_key

    def page_key(self, project_id: str) -> bytes:
        return self._page_key(project_id)

    async def data_keys(self, connection: Connection, ids: Collection[str]) -> Mapping[str, DataKey]:
        return {}
