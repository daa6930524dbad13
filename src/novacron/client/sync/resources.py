# Made of aio/resources.py by script/generate: change that, and run it.
"""What VMs use, hosts, and who may do what, as objects with methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Self

from novacron.client.protocol import Object
from novacron.client.sync.handles import (
    WAIT_S,
    Collection,
    Findable,
    Followed,
    Listed,
    Readable,
    Removable,
    Watched,
)
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


class VolumeHandle(Watched[Volume], Removable[Volume]):
    """A disk that lives on its own."""

    @property
    def id(self) -> str:
        return self.object.id

    @property
    def name(self) -> str:
        return self.object.name

    def configure(self, **changes: Unpack[ConfigureVolumeBody]) -> Self:
        return self._change(changes)

    def attach(self, vm: str, read_only: bool = False, boot_order: int | None = None) -> Self:
        """Attach it to a VM, by id or name."""
        return self._take(self._act("attach", {"vm": vm, "read_only": read_only, "boot_order": boot_order}))

    def detach(self) -> Self:
        """Begin to detach it: it is free once ``object.vm`` is None."""
        return self._take(self._act("detach"))


class VolumeCollection(Findable[Volume, VolumeHandle], Followed[Volume, VolumeHandle]):
    """All volumes that the caller may see."""

    _type, _handle = Volume, VolumeHandle

    def create(self, *, idempotency_key: str | None = None, **fields: Unpack[CreateVolumeBody]) -> VolumeHandle:
        return self._create(fields, idempotency_key)

    def list(
        self, *, vm: str | None = None, limit: int | None = None, sort: str | None = None
    ) -> Iterator[VolumeHandle]:
        return self._list(limit, vm=vm, sort=sort)


class ImageHandle(Readable[Image], Removable[Image]):
    """An image, on the nodes that hold it."""

    @property
    def name(self) -> str:
        return self.object.name

    def copy(self, target: str, source: str | None = None) -> ImageCopy:
        """Begin to copy it to another node; events of that node say how that ended."""
        return read(ImageCopy, self._act("copy", {"target": target, "source": source}))


class ImageCollection(Findable[Image, ImageHandle]):
    """All images."""

    _type, _handle = Image, ImageHandle

    def list(self) -> Iterator[ImageHandle]:
        return self._list(None)


class ImportHandle(Watched[Import], Removable[Import]):
    """An image on its way in; ``delete`` aborts that."""

    @property
    def id(self) -> str:
        return self.object.id

    def wait_until_finished(self, timeout_s: float = WAIT_S) -> Self:
        """Wait until it is done or has failed: ``object.phase`` says which. Raises TimeoutError."""
        return self.wait_until(lambda now: now.finished_at is not None, timeout_s)


class ImportCollection(Findable[Import, ImportHandle], Followed[Import, ImportHandle]):
    """All imports of images."""

    _type, _handle = Import, ImportHandle

    def create(self, *, idempotency_key: str | None = None, **fields: Unpack[ImportImageBody]) -> ImportHandle:
        """Begin to fetch an image from a URL or a path on a node. ``Client.import_image`` uploads one."""
        return self._create(fields, idempotency_key)

    def list(
        self, *, phase: ImportPhase | None = None, limit: int | None = None, sort: str | None = None
    ) -> Iterator[ImportHandle]:
        return self._list(limit, phase=phase, sort=sort)


class NetworkHandle(Watched[Network], Removable[Network]):
    """A network of VMs."""

    @property
    def name(self) -> str:
        return self.object.name


class NetworkCollection(
    Listed[Network, NetworkHandle],
    Findable[Network, NetworkHandle],
    Followed[Network, NetworkHandle],
):
    """All networks that the caller may see."""

    _type, _handle = Network, NetworkHandle

    def create(self, *, idempotency_key: str | None = None, **fields: Unpack[CreateNetworkBody]) -> NetworkHandle:
        return self._create(fields, idempotency_key)


class SecurityGroupHandle(Watched[SecurityGroup], Removable[SecurityGroup]):
    """Rules about what reaches VMs."""

    @property
    def name(self) -> str:
        return self.object.name

    def configure(self, rules: Sequence[RuleSpecBody]) -> Self:
        """Replace all rules."""
        return self._change({"rules": rules})


class SecurityGroupCollection(
    Listed[SecurityGroup, SecurityGroupHandle],
    Findable[SecurityGroup, SecurityGroupHandle],
    Followed[SecurityGroup, SecurityGroupHandle],
):
    """All security groups that the caller may see."""

    _type, _handle = SecurityGroup, SecurityGroupHandle

    def create(self, name: str, rules: Sequence[RuleSpecBody] = ()) -> SecurityGroupHandle:
        return self._create({"name": name, "rules": rules})


class FloatingAddressHandle(Watched[FloatingAddress], Removable[FloatingAddress]):
    """An address of the hosts' network that leads to a VM."""

    def attach(self, vm: str, network: str | None = None) -> Self:
        return self._take(self._act("attach", {"vm": vm, "network": network}))

    def detach(self) -> Self:
        return self._take(self._act("detach"))


class FloatingAddressCollection(
    Listed[FloatingAddress, FloatingAddressHandle],
    Findable[FloatingAddress, FloatingAddressHandle],
    Followed[FloatingAddress, FloatingAddressHandle],
):
    """All floating addresses that the caller may see."""

    _type, _handle = FloatingAddress, FloatingAddressHandle

    def create(self, **fields: Unpack[AddFloatingAddressBody]) -> FloatingAddressHandle:
        return self._create(fields)


class ForwardHandle(Removable[Forward]):
    """A port of the gateways that leads to a VM."""


class ForwardCollection(Followed[Forward, ForwardHandle]):
    """All forwards that the caller may see."""

    _type, _handle = Forward, ForwardHandle

    def create(self, *, idempotency_key: str | None = None, **fields: Unpack[CreateForwardBody]) -> ForwardHandle:
        return self._create(fields, idempotency_key)

    def list(
        self, *, vm: str | None = None, limit: int | None = None, sort: str | None = None
    ) -> Iterator[ForwardHandle]:
        return self._list(limit, vm=vm, sort=sort)


class NodeHandle(Watched[Node]):
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

    def configure(self, *, if_unchanged: bool = False, **changes: Unpack[ConfigureNodeBody]) -> Self:
        """Change fields; None removes a limit. ``if_unchanged`` as for VMs."""
        return self._change(changes, if_unchanged)

    def cordon(self) -> Self:
        """Place no more VMs on it."""
        return self._take(self._act("cordon"))

    def uncordon(self, bring_back: bool = False) -> Self:
        """Place VMs on it again; ``bring_back``: those that its drain moved away, too."""
        return self._take(self._act("uncordon", {"bring_back": bring_back}))

    def drain(self, policy: DrainPolicy | None = None, time_limit_s: int | None = None) -> Self:
        """Begin to move all VMs away; ``client.drains`` has the progress."""
        return self._take(self._act("drain", {"policy": policy, "time_limit_s": time_limit_s}))

    def rename(self, name: str) -> Self:
        return self._take(self._act("rename", {"name": name}))

    def accept(self) -> Self:
        """Let it run VMs, after it has joined."""
        return self._take(self._act("accept"))

    def remove(self, force: bool = False, confirm: str | None = None) -> None:
        """Remove it while it is empty; ``force`` as for ``Client.remove_node``."""
        self._connection.remove_node(self.name, force, confirm)


class NodeCollection(Listed[Node, NodeHandle], Findable[Node, NodeHandle], Followed[Node, NodeHandle]):
    """All nodes."""

    _type, _handle = Node, NodeHandle


class DrainHandle(Watched[Drain]):
    """A drain of a node."""


class DrainCollection(Findable[Drain, DrainHandle], Followed[Drain, DrainHandle]):
    """All drains."""

    _type, _handle = Drain, DrainHandle

    def list(
        self, *, node: str | None = None, limit: int | None = None, sort: str | None = None
    ) -> Iterator[DrainHandle]:
        return self._list(limit, node=node, sort=sort)


class DrillHandle(Watched[DrillRun]):
    """A run of a drill."""


class DrillCollection(Findable[DrillRun, DrillHandle], Followed[DrillRun, DrillHandle]):
    """The runs of drills that are kept."""

    _type, _handle = DrillRun, DrillHandle

    def list(
        self, *, drill: str | None = None, limit: int | None = None, sort: str | None = None
    ) -> Iterator[DrillHandle]:
        return self._list(limit, drill=drill, sort=sort)


class ProjectHandle(Watched[Project], Removable[Project]):
    """A project: what belongs to a team, and how much of it."""

    @property
    def name(self) -> str:
        return self.object.name

    def configure(self, **changes: Unpack[ConfigureProjectBody]) -> Self:
        """Change fields; a quota is replaced as a whole."""
        return self._change(changes)

    def usage(self) -> Usage:
        """Return what it uses."""
        return read(Usage, (self._connection.usage(self.name))["usage"])


class ProjectCollection(
    Listed[Project, ProjectHandle],
    Findable[Project, ProjectHandle],
    Followed[Project, ProjectHandle],
):
    """All projects that the caller may see."""

    _type, _handle = Project, ProjectHandle

    def create(self, *, idempotency_key: str | None = None, **fields: Unpack[CreateProjectBody]) -> ProjectHandle:
        return self._create(fields, idempotency_key)


class UserHandle(Readable[User], Removable[User]):
    """Somebody, or something, that has tokens or logs in."""

    @property
    def name(self) -> str:
        return self.object.name

    def configure(self, **changes: Unpack[ConfigureUserBody]) -> Self:
        return self._change(changes)


class UserCollection(Listed[User, UserHandle], Findable[User, UserHandle]):
    """All users that the caller may see."""

    _type, _handle = User, UserHandle

    def create(self, **fields: Unpack[CreateUserBody]) -> UserHandle:
        return self._create(fields)


class GrantHandle(Removable[Grant]):
    """A role of a user, in a project or everywhere."""


class GrantCollection(Collection[Grant, GrantHandle]):
    """All grants that the caller may see."""

    _type, _handle = Grant, GrantHandle

    def create(self, **fields: Unpack[CreateGrantBody]) -> GrantHandle:
        return self._create(fields)

    def list(
        self, *, user: str | None = None, limit: int | None = None, sort: str | None = None
    ) -> Iterator[GrantHandle]:
        return self._list(limit, user=user, sort=sort)


class EventCollection(Followed[Event, Event]):
    """What happened, newest first, as values."""

    _type = Event

    def _of(self, body: Object) -> Event:
        return read(Event, body)

    def list(self, *, object: str | None = None, limit: int | None = None) -> Iterator[Event]:
        """Yield events, page by page; ``object`` is an id or name."""
        return self._list(limit, object=object)
