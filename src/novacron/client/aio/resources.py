"""What VMs use, hosts, and who may do what, as objects with methods."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Self

from novacron.client.aio.handles import (
    WAIT_S,
    AsyncCollection,
    AsyncFindable,
    AsyncFollowed,
    AsyncListed,
    AsyncReadable,
    AsyncRemovable,
    AsyncWatched,
)
from novacron.client.protocol import Object
from novacron.client.typed import (
    Drain,
    DrainPolicy,
    DrillRun,
    Event,
    FloatingAddress,
    Forward,
    Grant,
    Image,
    ImageCopy,
    Import,
    ImportPhase,
    Network,
    Node,
    NodeSpec,
    NodeStatus,
    Project,
    SecurityGroup,
    Usage,
    User,
    Volume,
    read,
)

if TYPE_CHECKING:
    from typing import Unpack

    from novacron.client.bodies import (
        AddFloatingAddressBody,
        ConfigureNodeBody,
        ConfigureProjectBody,
        ConfigureUserBody,
        ConfigureVolumeBody,
        CreateForwardBody,
        CreateGrantBody,
        CreateNetworkBody,
        CreateProjectBody,
        CreateUserBody,
        CreateVolumeBody,
        ImportImageBody,
        RuleSpecBody,
    )


class AsyncVolumeHandle(AsyncWatched[Volume], AsyncRemovable[Volume]):
    """A disk that lives on its own."""

    @property
    def id(self) -> str:
        return self.object.id

    @property
    def name(self) -> str:
        return self.object.name

    async def configure(self, **changes: Unpack[ConfigureVolumeBody]) -> Self:
        return await self._change(changes)

    async def attach(self, vm: str, read_only: bool = False, boot_order: int | None = None) -> Self:
        """Attach it to a VM, by id or name."""
        return self._take(await self._act("attach", {"vm": vm, "read_only": read_only, "boot_order": boot_order}))

    async def detach(self) -> Self:
        """Begin to detach it: it is free once ``object.vm`` is None."""
        return self._take(await self._act("detach"))


class AsyncVolumeCollection(AsyncFindable[Volume, AsyncVolumeHandle], AsyncFollowed[Volume, AsyncVolumeHandle]):
    """All volumes that the caller may see."""

    _type, _handle = Volume, AsyncVolumeHandle

    async def create(
        self, *, idempotency_key: str | None = None, **fields: Unpack[CreateVolumeBody]
    ) -> AsyncVolumeHandle:
        return await self._create(fields, idempotency_key)

    def list(
        self, *, vm: str | None = None, limit: int | None = None, sort: str | None = None
    ) -> AsyncIterator[AsyncVolumeHandle]:
        return self._list(limit, vm=vm, sort=sort)


class AsyncImageHandle(AsyncReadable[Image], AsyncRemovable[Image]):
    """An image, on the nodes that hold it."""

    @property
    def name(self) -> str:
        return self.object.name

    async def copy(self, target: str, source: str | None = None) -> ImageCopy:
        """Begin to copy it to another node; events of that node say how that ended."""
        return read(ImageCopy, await self._act("copy", {"target": target, "source": source}))


class AsyncImageCollection(AsyncFindable[Image, AsyncImageHandle]):
    """All images."""

    _type, _handle = Image, AsyncImageHandle

    def list(self) -> AsyncIterator[AsyncImageHandle]:
        return self._list(None)


class AsyncImportHandle(AsyncWatched[Import], AsyncRemovable[Import]):
    """An image on its way in; ``delete`` aborts that."""

    @property
    def id(self) -> str:
        return self.object.id

    async def wait_until_finished(self, timeout_s: float = WAIT_S) -> Self:
        """Wait until it is done or has failed: ``object.phase`` says which. Raises TimeoutError."""
        return await self.wait_until(lambda now: now.finished_at is not None, timeout_s)


class AsyncImportCollection(AsyncFindable[Import, AsyncImportHandle], AsyncFollowed[Import, AsyncImportHandle]):
    """All imports of images."""

    _type, _handle = Import, AsyncImportHandle

    async def create(
        self, *, idempotency_key: str | None = None, **fields: Unpack[ImportImageBody]
    ) -> AsyncImportHandle:
        """Begin to fetch an image from a URL or a path on a node. ``Client.import_image`` uploads one."""
        return await self._create(fields, idempotency_key)

    def list(
        self, *, phase: ImportPhase | None = None, limit: int | None = None, sort: str | None = None
    ) -> AsyncIterator[AsyncImportHandle]:
        return self._list(limit, phase=phase, sort=sort)


class AsyncNetworkHandle(AsyncWatched[Network], AsyncRemovable[Network]):
    """A network of VMs."""

    @property
    def name(self) -> str:
        return self.object.name


class AsyncNetworkCollection(
    AsyncListed[Network, AsyncNetworkHandle],
    AsyncFindable[Network, AsyncNetworkHandle],
    AsyncFollowed[Network, AsyncNetworkHandle],
):
    """All networks that the caller may see."""

    _type, _handle = Network, AsyncNetworkHandle

    async def create(
        self, *, idempotency_key: str | None = None, **fields: Unpack[CreateNetworkBody]
    ) -> AsyncNetworkHandle:
        return await self._create(fields, idempotency_key)


class AsyncSecurityGroupHandle(AsyncWatched[SecurityGroup], AsyncRemovable[SecurityGroup]):
    """Rules about what reaches VMs."""

    @property
    def name(self) -> str:
        return self.object.name

    async def configure(self, rules: Sequence[RuleSpecBody]) -> Self:
        """Replace all rules."""
        return await self._change({"rules": rules})


class AsyncSecurityGroupCollection(
    AsyncListed[SecurityGroup, AsyncSecurityGroupHandle],
    AsyncFindable[SecurityGroup, AsyncSecurityGroupHandle],
    AsyncFollowed[SecurityGroup, AsyncSecurityGroupHandle],
):
    """All security groups that the caller may see."""

    _type, _handle = SecurityGroup, AsyncSecurityGroupHandle

    async def create(self, name: str, rules: Sequence[RuleSpecBody] = ()) -> AsyncSecurityGroupHandle:
        return await self._create({"name": name, "rules": rules})


class AsyncFloatingAddressHandle(AsyncWatched[FloatingAddress], AsyncRemovable[FloatingAddress]):
    """An address of the hosts' network that leads to a VM."""

    async def attach(self, vm: str, network: str | None = None) -> Self:
        return self._take(await self._act("attach", {"vm": vm, "network": network}))

    async def detach(self) -> Self:
        return self._take(await self._act("detach"))


class AsyncFloatingAddressCollection(
    AsyncListed[FloatingAddress, AsyncFloatingAddressHandle],
    AsyncFindable[FloatingAddress, AsyncFloatingAddressHandle],
    AsyncFollowed[FloatingAddress, AsyncFloatingAddressHandle],
):
    """All floating addresses that the caller may see."""

    _type, _handle = FloatingAddress, AsyncFloatingAddressHandle

    async def create(self, **fields: Unpack[AddFloatingAddressBody]) -> AsyncFloatingAddressHandle:
        return await self._create(fields)


class AsyncForwardHandle(AsyncRemovable[Forward]):
    """A port of the gateways that leads to a VM."""


class AsyncForwardCollection(AsyncFollowed[Forward, AsyncForwardHandle]):
    """All forwards that the caller may see."""

    _type, _handle = Forward, AsyncForwardHandle

    async def create(
        self, *, idempotency_key: str | None = None, **fields: Unpack[CreateForwardBody]
    ) -> AsyncForwardHandle:
        return await self._create(fields, idempotency_key)

    def list(
        self, *, vm: str | None = None, limit: int | None = None, sort: str | None = None
    ) -> AsyncIterator[AsyncForwardHandle]:
        return self._list(limit, vm=vm, sort=sort)


class AsyncNodeHandle(AsyncWatched[Node]):
    """A host that runs VMs."""

    @property
    def name(self) -> str:
        return self.object.name

    @property
    def spec(self) -> NodeSpec:
        return self.object.spec

    @property
    def status(self) -> NodeStatus:
        return self.object.status

    async def configure(self, *, if_unchanged: bool = False, **changes: Unpack[ConfigureNodeBody]) -> Self:
        """Change fields; None removes a limit. ``if_unchanged`` as for VMs."""
        return await self._change(changes, if_unchanged)

    async def cordon(self) -> Self:
        """Place no more VMs on it."""
        return self._take(await self._act("cordon"))

    async def uncordon(self, bring_back: bool = False) -> Self:
        """Place VMs on it again; ``bring_back``: those that its drain moved away, too."""
        return self._take(await self._act("uncordon", {"bring_back": bring_back}))

    async def drain(self, policy: DrainPolicy | None = None, time_limit_s: int | None = None) -> Self:
        """Begin to move all VMs away; ``client.drains`` has the progress."""
        return self._take(await self._act("drain", {"policy": policy, "time_limit_s": time_limit_s}))

    async def rename(self, name: str) -> Self:
        return self._take(await self._act("rename", {"name": name}))

    async def accept(self) -> Self:
        """Let it run VMs, after it has joined."""
        return self._take(await self._act("accept"))

    async def remove(self, force: bool = False, confirm: str | None = None) -> None:
        """Remove it while it is empty; ``force`` as for ``Client.remove_node``."""
        await self._connection.remove_node(self.name, force, confirm)


class AsyncNodeCollection(
    AsyncListed[Node, AsyncNodeHandle], AsyncFindable[Node, AsyncNodeHandle], AsyncFollowed[Node, AsyncNodeHandle]
):
    """All nodes."""

    _type, _handle = Node, AsyncNodeHandle


class AsyncDrainHandle(AsyncWatched[Drain]):
    """A drain of a node."""


class AsyncDrainCollection(AsyncFindable[Drain, AsyncDrainHandle], AsyncFollowed[Drain, AsyncDrainHandle]):
    """All drains."""

    _type, _handle = Drain, AsyncDrainHandle

    def list(
        self, *, node: str | None = None, limit: int | None = None, sort: str | None = None
    ) -> AsyncIterator[AsyncDrainHandle]:
        return self._list(limit, node=node, sort=sort)


class AsyncDrillHandle(AsyncWatched[DrillRun]):
    """A run of a drill."""


class AsyncDrillCollection(AsyncFindable[DrillRun, AsyncDrillHandle], AsyncFollowed[DrillRun, AsyncDrillHandle]):
    """The runs of drills that are kept."""

    _type, _handle = DrillRun, AsyncDrillHandle

    def list(
        self, *, drill: str | None = None, limit: int | None = None, sort: str | None = None
    ) -> AsyncIterator[AsyncDrillHandle]:
        return self._list(limit, drill=drill, sort=sort)


class AsyncProjectHandle(AsyncWatched[Project], AsyncRemovable[Project]):
    """A project: what belongs to a team, and how much of it."""

    @property
    def name(self) -> str:
        return self.object.name

    async def configure(self, **changes: Unpack[ConfigureProjectBody]) -> Self:
        """Change fields; a quota is replaced as a whole."""
        return await self._change(changes)

    async def usage(self) -> Usage:
        """Return what it uses."""
        return read(Usage, (await self._connection.usage(self.name))["usage"])


class AsyncProjectCollection(
    AsyncListed[Project, AsyncProjectHandle],
    AsyncFindable[Project, AsyncProjectHandle],
    AsyncFollowed[Project, AsyncProjectHandle],
):
    """All projects that the caller may see."""

    _type, _handle = Project, AsyncProjectHandle

    async def create(
        self, *, idempotency_key: str | None = None, **fields: Unpack[CreateProjectBody]
    ) -> AsyncProjectHandle:
        return await self._create(fields, idempotency_key)


class AsyncUserHandle(AsyncReadable[User], AsyncRemovable[User]):
    """Somebody, or something, that has tokens or logs in."""

    @property
    def name(self) -> str:
        return self.object.name

    async def configure(self, **changes: Unpack[ConfigureUserBody]) -> Self:
        return await self._change(changes)


class AsyncUserCollection(AsyncListed[User, AsyncUserHandle], AsyncFindable[User, AsyncUserHandle]):
    """All users that the caller may see."""

    _type, _handle = User, AsyncUserHandle

    async def create(self, **fields: Unpack[CreateUserBody]) -> AsyncUserHandle:
        return await self._create(fields)


class AsyncGrantHandle(AsyncRemovable[Grant]):
    """A role of a user, in a project or everywhere."""


class AsyncGrantCollection(AsyncCollection[Grant, AsyncGrantHandle]):
    """All grants that the caller may see."""

    _type, _handle = Grant, AsyncGrantHandle

    async def create(self, **fields: Unpack[CreateGrantBody]) -> AsyncGrantHandle:
        return await self._create(fields)

    def list(
        self, *, user: str | None = None, limit: int | None = None, sort: str | None = None
    ) -> AsyncIterator[AsyncGrantHandle]:
        return self._list(limit, user=user, sort=sort)


class AsyncEventCollection(AsyncFollowed[Event, Event]):
    """What happened, newest first, as values."""

    _type = Event

    def _of(self, body: Object) -> Event:
        return read(Event, body)

    def list(self, *, object: str | None = None, limit: int | None = None) -> AsyncIterator[Event]:
        """Yield events, page by page; ``object`` is an id or name."""
        return self._list(limit, object=object)
