"""The API's client: one method for each route, and waiting for what takes time."""

from __future__ import annotations

from novacron.client.config import Config, config_path, load_config
from novacron.client.protocol import Object
from novacron.client.sync.access import AccessCalls
from novacron.client.sync.guests import GuestCalls
from novacron.client.sync.images import ImageCalls
from novacron.client.sync.keys import KeyCalls
from novacron.client.sync.networks import NetworkCalls
from novacron.client.sync.nodes import NodeCalls
from novacron.client.sync.vms import VmCalls
from novacron.client.sync.volumes import VolumeCalls

__all__ = ["Client", "Config", "Object", "config_path", "load_config"]


class Client(VmCalls, GuestCalls, VolumeCalls, ImageCalls, NetworkCalls, NodeCalls, AccessCalls, KeyCalls):
    """Connections to one API. Not for use by several threads at once."""

    def __init__(self, config: Config | None = None) -> None:
        from novacron.client.sync.transport import Transport  # most commands that fail do so before

        self.config = config or load_config()
        self._transport = Transport(self.config)
