"""Which images, pools, huge pages and bridges this node has: looked at now and then; the server is told of changes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

import msgspec

from novacron.agent.host import huge_pages
from novacron.agent.images import unused
from novacron.agent.migration.services import NodeServices
from novacron.agent.settings import AgentSettings
from novacron.disk.images import scan
from novacron.model.devices import HugePages
from novacron.model.node import Inventory
from novacron.net import tap
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

CHECK_S = 5.0


class ImageWatcher:
    """Keeps the inventory, of which images and pools are a part. ``images_in_use`` names those that VMs here have."""

    def __init__(
        self,
        settings: AgentSettings,
        host: NodeServices,
        inventory: Inventory,
        images_in_use: Callable[[], Iterable[str]],
    ) -> None:
        self.inventory = inventory
        self._settings = settings
        self._host = host
        self._images_in_use = images_in_use
        self._scanning = asyncio.Lock()

    async def run(self) -> None:
        """Tell the server of images that come and go, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_S)
            await self.rescan()
            in_use = set(self._images_in_use())
            try:
                idle = await asyncio.to_thread(unused.idle, self._settings, dict(self._host.images), in_use)
            except OSError as error:
                log.warning("can't see which images are used", error=str(error))
                continue
            for image in idle:
                self._host.send(wire.ImageIdle(image.name, image.digest))

    def _bridges(self) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
        """Return this host's bridges, if VMs may use them, and those that filter VLANs; what is known of them where
        the kernel does not say it now."""
        if self.inventory.networks:
            with contextlib.suppress(tap.NetworkFailed):  # links changed meanwhile: the next look is soon
                return tap.bridges()
        return self.inventory.bridges, self.inventory.vlan_bridges

    async def rescan(self) -> None:
        """Look at the images, pools, huge pages and bridges now. Raises OSError."""
        async with self._scanning:
            images, _ = await asyncio.to_thread(scan, self._settings.images_dir)
            self._host.images.clear()
            self._host.images.update(images)
            infos = tuple(image.info for image in images.values())
            pools, _ = await asyncio.to_thread(self._host.storage_pools.look)
            bridges, vlan_bridges = await asyncio.to_thread(self._bridges)
            now = msgspec.structs.replace(
                self.inventory, images=infos, pools=pools, huge_2m_mib=huge_pages.set_aside_mib(HugePages.SIZE_2M),
                huge_1g_mib=huge_pages.set_aside_mib(HugePages.SIZE_1G), bridges=bridges, vlan_bridges=vlan_bridges,
            )  # fmt: skip
            if now != self.inventory:
                self.inventory = now
                self._host.send(wire.InventoryChanged(self.inventory))
