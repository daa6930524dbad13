"""Secrets of projects, as the server's parts ask for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime

from novacron.model.encryption import DataKey
from novacron.store.database import Connection


class PlainSecrets:
    """Secrets of projects that encrypt nothing."""

    def __init__(self, page_keys: Callable[[str, datetime | None], list[bytes]] = lambda *_: [b"k" * 32]) -> None:
        self._page_keys = page_keys

    def page_keys(self, project_id: str, began: datetime | None) -> list[bytes]:
        return self._page_keys(project_id, began)

    async def data_keys(self, connection: Connection, ids: Collection[str]) -> Mapping[str, DataKey]:
        return {}
