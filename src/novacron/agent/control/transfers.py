"""What this node does with another one for the server: probes of the path between them, and copies of images."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from novacron.agent.actions import Action, doing
from novacron.agent.images import copies, unused
from novacron.agent.migration import estimate, path_probe
from novacron.agent.migration.services import NodeServices
from novacron.agent.settings import AgentSettings
from novacron.agent.worker import Worker
from novacron.supervise import FewTasks
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)

PROBES_MAX = 4
COPIES_MAX = 4


class Transfers:
    """Takes part in a few probes and copies at once. ``rescan_images`` looks at the node's images again."""

    def __init__(
        self, settings: AgentSettings, host: NodeServices, workers: Mapping[str, Worker],
        rescan_images: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._host = host
        self._workers = workers
        self._rescan_images = rescan_images
        self._probes = FewTasks("probe", PROBES_MAX)
        self._copies = FewTasks("image-copy", COPIES_MAX)

    def begin(self, request: wire.ProbeExpected | wire.ProbeWanted | wire.CopyExpected | wire.CopyWanted) -> None:
        """Begin to do what the server asks for, unless the node does too much of it already."""
        match request:
            case wire.ProbeExpected():
                begun = self._probes.start(self._expect_probe(request))
            case wire.ProbeWanted():
                begun = self._probes.start(self._send_probe(request))
            case wire.CopyExpected():
                begun = self._copies.start(self._take_copy(request))
            case wire.CopyWanted():
                begun = self._copies.start(self._give_copy(request))
        if begun:
            return
        if isinstance(request, wire.ProbeExpected | wire.ProbeWanted):
            self._host.send(wire.Probed(request.probe, None, error="it already takes part in too many probes"))
        else:
            self._host.send(wire.Copied(request.copy, error="it already takes part in too many copies"))

    async def end(self) -> None:
        await self._probes.end()
        await self._copies.end()

    async def _expect_probe(self, request: wire.ProbeExpected) -> None:
        listener, rings_dir = self._host.listener, self._settings.rings_dir
        self._host.send(wire.ProbeReady(request.probe))
        with doing(Action.PROBE, source=request.peer):
            await path_probe.receive(listener, request.probe, request.peer, rings_dir, request.seconds)

    async def _send_probe(self, request: wire.ProbeWanted) -> None:
        name, rings_dir = self._host.identity.name, self._settings.rings_dir
        try:
            guest = None if request.vm is None else await self._look_at(request.vm)
            with doing(Action.PROBE, target=request.peer):
                path = await path_probe.measure(self._host.connections, request, name, rings_dir)
            limit_s = self._settings.downtime_limit_ms / 1e3
            foreseen = None if guest is None else estimate.of_move(guest, path, limit_s)
            self._host.send(wire.Probed(request.probe, path, foreseen))
        except (path_probe.ProbeFailed, estimate.EstimateFailed) as error:
            self._host.send(wire.Probed(request.probe, None, error=str(error)))

    async def _look_at(self, vm: str) -> estimate.GuestLoad:
        """Return what a VM's move depends on. Raises EstimateFailed."""
        worker = self._workers.get(vm)
        neighbour = None if worker is None else worker.neighbour()
        if worker is None or neighbour is None:
            raise estimate.EstimateFailed("the VM does not run on this node")
        return await estimate.look(neighbour.machine, neighbour.memory_bytes, worker.context.files_to_move())

    async def _take_copy(self, request: wire.CopyExpected) -> None:
        self._host.send(wire.CopyReady(request.copy))
        try:
            with doing(Action.COPY_IN, image=request.image.name, source=request.peer):
                await copies.take(self._host.listener, request, self._settings)
            if request.on_demand:
                await asyncio.to_thread(unused.mark, self._settings, request.image.name)
            log.info("an image has arrived", image=request.image.name, source=request.peer)
            await self._rescan_images()
            self._host.send(wire.Copied(request.copy))
        except copies.CopyFailed as error:
            log.warning("an image did not arrive", image=request.image.name, source=request.peer, error=str(error))
            self._host.send(wire.Copied(request.copy, error=str(error)))

    async def _give_copy(self, request: wire.CopyWanted) -> None:
        image = self._host.images.get(request.image.name)
        try:
            if image is None or image.info != request.image:
                raise copies.CopyFailed(f"this node does not hold that version of image {request.image.name}")
            with doing(Action.COPY_OUT, image=request.image.name, target=request.peer):
                await copies.give(self._host.connections, request, image, self._settings)
        except copies.CopyFailed as error:
            log.warning("an image could not be sent", image=request.image.name, target=request.peer, error=str(error))
            self._host.send(wire.Copied(request.copy, error=str(error)))
