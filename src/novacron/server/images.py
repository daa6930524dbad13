"""Images that nodes need for VMs, or no longer need: fetched and removed in the background, a few at once."""

from __future__ import annotations

from collections.abc import Coroutine

from novacron.model.errors import NovaError
from novacron.server.copies import Copies
from novacron.server.questions import Questions
from novacron.store import events, nodes, vms
from novacron.store.database import Database
from novacron.supervise import FewTasks
from novacron.telemetry import logs
from novacron.wire.questions import RemoveImage

log = logs.get(__name__)

AT_ONCE_MAX = 32


class ImageUpkeep:
    """Answers nodes' requests about images. Nodes ask again, so requests beyond the limit are dropped."""

    def __init__(self, database: Database, questions: Questions, copies: Copies) -> None:
        self._database = database
        self._questions = questions
        self._copies = copies
        self._tasks = FewTasks("image-upkeep", AT_ONCE_MAX)
        self._under_way: set[tuple[str, str]] = set()

    def fetch(self, node: str, name: str) -> None:
        """Begin to copy an image to a node that needs it for a VM."""
        self._start(node, name, self._fetch(node, name))

    def collect(self, node: str, name: str, digest: str) -> None:
        """Begin to remove an image from a node where no VM needs it, if another node has it."""
        self._start(node, name, self._collect(node, name, digest))

    async def end(self) -> None:
        await self._tasks.end()

    def _start(self, node: str, name: str, work: Coroutine[None, None, None]) -> None:
        """Do it unless the same is under way, or too much is."""
        if (node, name) in self._under_way or self._tasks.full:
            work.close()
            return
        self._under_way.add((node, name))
        self._tasks.start(self._once(node, name, work))

    async def _once(self, node: str, name: str, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        finally:
            self._under_way.discard((node, name))

    async def _fetch(self, node: str, name: str) -> None:
        try:
            async with self._database.connection() as connection:
                if not await vms.made_of(connection, name, node):  # an image may be a project's own
                    log.warning("a node asks for an image of which no VM is there", node=node, image=name)
                    return
            await self._copies.begin(name, None, node, events.SYSTEM)
        except NovaError as error:  # it is on its way, or nobody has it: the VM's reason says so
            log.debug("an image that a VM needs is not copied", node=node, image=name, error=str(error))

    async def _collect(self, node: str, name: str, digest: str) -> None:
        try:
            async with self._database.connection() as connection:
                if await vms.made_of(connection, name, node) or not await nodes.others_hold(connection, node, digest):
                    return
            await self._questions.ask(node, RemoveImage(name, digest))
            async with self._database.transaction() as connection:
                message = f"image {name}, of which no VM there is made"
                await events.record(connection, events.NewEvent("node", node, node, "ImageRemoved", message))
        except NovaError as error:
            log.warning("an image that is not used stays", node=node, image=name, error=str(error))
