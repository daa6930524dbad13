"""The API's client: one method for each route, and waiting for what takes time."""

from __future__ import annotations

from novacron.client.config import Config, config_path, load_config
from novacron.client.protocol import Object
from novacron.client.sync.collections import Collections

__all__ = ["Client", "Config", "Object", "config_path", "load_config"]


class Client(Collections):
    """Connections to one API. Not for use by several threads at once."""

    def __init__(self, config: Config | None = None) -> None:
        from novacron.client.sync.transport import Transport  # most commands that fail do so before

        self.config = config or load_config()
        self._transport = Transport(self.config)
