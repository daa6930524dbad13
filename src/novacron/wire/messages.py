"""The messages of the agent link."""

from __future__ import annotations

import msgspec

from novacron.model.cloud_init import Seed
from novacron.model.console import ConsoleKind
from novacron.model.cpu import CpuModel
from novacron.model.export import ExportPhase
from novacron.model.firmware_state import FirmwareState
from novacron.model.image import ImportSpec
from novacron.model.image import Phase as ImportPhase
from novacron.model.migration import Kind, Policy, Progress, Side
from novacron.model.network import NetworkOnNode
from novacron.model.node import ImageInfo, Inventory
from novacron.model.ownership import Order
from novacron.model.probe import MoveForeseen, PathMeasured
from novacron.model.snapshot import SnapshotPhase
from novacron.model.vm import CloneOf, Hardware, VmSpec, VmStatus
from novacron.model.volume import VolumePhase

PROTOCOL = 6


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=str.lower, kw_only=True, omit_defaults=True):
    """Base of all messages."""

    trace: str = ""
    """To which trace belongs what is said (W3C Trace Context: traceparent)."""


class Request(Message, frozen=True):
    """Base of the server's messages that a node replies to."""

    @property
    def reply_key(self) -> str:
        """What tells the reply from others."""
        raise NotImplementedError


class Reply(Message, frozen=True, kw_only=True):
    """Base of a node's messages that reply to a request. ``error`` says why there is no result."""

    error: str = ""

    @property
    def replies_to(self) -> tuple[str, ...]:
        """The keys of the requests that this settles."""
        raise NotImplementedError


def _ready(exchange: str) -> str:
    return f"{exchange} is ready"


def _over(exchange: str) -> str:
    return f"{exchange} is over"


def _settles(exchange: str, error: str) -> tuple[str, ...]:
    """Return what the end of an exchange settles: a node that failed will not become ready either."""
    return (_ready(exchange), _over(exchange)) if error else (_over(exchange),)


# agent to server


class Hello(Message, frozen=True):
    """First message: what the host has, and each VM of which it holds anything."""

    protocol: int
    inventory: Inventory
    held: tuple[str, ...]


class PeerSeen(msgspec.Struct, frozen=True):
    """Another node answered lately. ``silent``: it hears nothing from the control plane."""

    name: str
    silent: bool


class Heartbeat(Message, frozen=True):
    """Still here. ``number`` counts those of a connection from 1; ``acknowledged`` is the last one of which the
    acknowledgement has come; ``steady_s`` is for how long they have come without a pause. See docs/adr/0023."""

    number: int
    acknowledged: int
    steady_s: float
    voters: tuple[str, ...]
    """By whose word the node would go on without the control plane, once this is acknowledged."""
    seen: tuple[PeerSeen, ...] = ()
    clock: float = 0.0
    """What the node's clock said, in seconds since 1970."""


class Measured(Message, frozen=True):
    """How many processors each VM has used lately."""

    cpus: tuple[tuple[str, float], ...]


class InventoryChanged(Message, frozen=True):
    """The host's inventory is now this one."""

    inventory: Inventory


class Observed(Message, frozen=True):
    """What a VM is on this node, at the epoch that the node knows."""

    vm: str
    epoch: int
    status: VmStatus


class Cloned(Message, frozen=True):
    """A VM that was to become a clone has its disk."""

    vm: str
    epoch: int


class Removed(Message, frozen=True):
    """Nothing of this VM is left on this node."""

    vm: str


class TargetReady(Message, frozen=True):
    """The target of a migration waits for the stream at ``endpoint`` (``host:port``)."""

    migration: str
    endpoint: str


class Progressed(Message, frozen=True):
    """What the source of a migration measures."""

    migration: str
    progress: Progress


class Stopped(Message, frozen=True):
    """The guest stands still at the source: downtime begins."""

    migration: str


class Resumed(Message, frozen=True):
    """The guest executes at the target: downtime ends."""

    migration: str


class Voted(Message, frozen=True):
    """One side's promise at ``epoch``, durable before it was sent."""

    migration: str
    side: Side
    epoch: int


class MigrationFailed(Message, frozen=True):
    """One side can't go on."""

    migration: str
    reason: str


class ConsoleOutput(Message, frozen=True):
    """Bytes from a VM's serial console."""

    channel: int
    data: bytes


class ConsoleClosed(Message, frozen=True):
    """A console channel ended, with the reason."""

    channel: int
    reason: str


class ProbeReady(Reply, frozen=True):
    """This node expects the probe."""

    probe: str

    @property
    def replies_to(self) -> tuple[str, ...]:
        return (_ready(self.probe),)


class Probed(Reply, frozen=True):
    """What a probe found, or why it found nothing."""

    probe: str
    found: PathMeasured | None
    foreseen: MoveForeseen | None = None
    """If the move of a VM was to be foreseen."""

    @property
    def replies_to(self) -> tuple[str, ...]:
        return _settles(self.probe, self.error)


class ImageMissing(Message, frozen=True):
    """A VM is to run here, of an image that this node does not hold."""

    name: str


class ImageIdle(Message, frozen=True):
    """An image came here for a VM, and no VM here has been made of it for long."""

    name: str
    digest: str


class CopyReady(Reply, frozen=True):
    """This node expects the copy of an image."""

    copy: str

    @property
    def replies_to(self) -> tuple[str, ...]:
        return (_ready(self.copy),)


class Copied(Reply, frozen=True):
    """The image is here, or it is known why it will not come."""

    copy: str

    @property
    def replies_to(self) -> tuple[str, ...]:
        return _settles(self.copy, self.error)


class SnapshotStands(Message, frozen=True):
    """What became of a snapshot that this node was to work on: ``done`` is the phase that it was told of."""

    vm: str
    epoch: int
    id: str
    done: SnapshotPhase
    error: str = ""
    pause_ms: float | None = None


class ExportStands(Message, frozen=True):
    """How far an export is on this node."""

    id: str
    phase: ExportPhase
    size_bytes: int = 0
    disk_bytes: int = 0
    sha256: str = ""
    error: str = ""


class VolumeStands(Message, frozen=True):
    """What a node has done about a volume of its own."""

    id: str
    phase: VolumePhase
    used_bytes: int = 0
    error: str = ""


class VolumeHandled(Message, frozen=True):
    """What a VM's node did with a volume that is, or was to be, attached to it. ``released``: QEMU does not have it."""

    vm: str
    epoch: int
    id: str
    released: bool
    error: str = ""


class ImportStands(Message, frozen=True):
    """How far an import is on this node."""

    id: str
    phase: ImportPhase
    held_bytes: int
    error: str = ""


class Answered(Reply, frozen=True):
    """What came of a question: a value, whose form follows from the question, or what was wrong."""

    ask: int
    value: msgspec.Raw = msgspec.Raw(b"\xc0")
    field: str | None = None

    @property
    def replies_to(self) -> tuple[str, ...]:
        return (str(self.ask),)


class RenewCertificate(Message, frozen=True):
    """The node asks for a certificate for the key of this request (PEM)."""

    csr: bytes


FromAgent = (
    Hello
    | Heartbeat
    | Measured
    | InventoryChanged
    | Observed
    | Cloned
    | Removed
    | TargetReady
    | Progressed
    | Stopped
    | Resumed
    | Voted
    | MigrationFailed
    | ConsoleOutput
    | ConsoleClosed
    | ProbeReady
    | Probed
    | ImportStands
    | VolumeStands
    | ExportStands
    | VolumeHandled
    | SnapshotStands
    | Answered
    | ImageMissing
    | ImageIdle
    | CopyReady
    | Copied
    | RenewCertificate
)

# server to agent


class Beaten(Message, frozen=True):
    """A heartbeat was taken: the node's lease begins anew with when it was sent."""

    number: int


class Peer(msgspec.Struct, frozen=True):
    name: str
    endpoint: str
    """Where it takes DWCP connections."""


class Peers(Message, frozen=True):
    """Other nodes: by whose word this one may go on when the server is silent, and those that it looks after."""

    voters: tuple[Peer, ...]
    watched: tuple[Peer, ...]


class SnapshotWanted(msgspec.Struct, frozen=True):
    """A snapshot on which there is something to do."""

    id: str
    phase: SnapshotPhase
    memory: bool
    quiesce: bool
    asked: int
    """Another number each time that it is asked for: going back twice is to be done twice."""


class VolumeAttached(msgspec.Struct, frozen=True):
    """A volume that a VM has, or, ``detaching``, should not have any more."""

    id: str
    pool: str
    lun: int
    size_mib: int
    read_only: bool
    boot_order: int | None
    iops: int | None
    bytes_per_s: int | None
    detaching: bool
    moves: bool
    """It is on the VM's node only, and moves with it."""


class Assignment(msgspec.Struct, frozen=True):
    """A VM that the node owns, or is to receive."""

    vm: str
    name: str
    spec: VmSpec
    deleting: bool
    machine: str
    reboots: int
    halted_at_start: int | None
    project: str
    page_key: bytes
    """Makes the digests of the project's pages: 32 bytes, secret, the same on every node."""
    seed: Seed | None = None
    resets: int = 0
    snapshots: tuple[SnapshotWanted, ...] = ()
    clone_of: CloneOf | None = None
    """Its disk is to be made from this VM's, before anything else."""
    volumes: tuple[VolumeAttached, ...] = ()
    hardware: Hardware | None = None
    """Of a guest that is to come here while it runs."""
    passthrough: tuple[str, ...] = ()
    """Devices of the node's that VMs may have."""
    cpu: CpuModel | None = None
    """The processor that its guest has, or is to have; None: all that the node can give."""
    firmware_state: FirmwareState | None = None
    """What firmware and TPM of a VM that has not run yet begin with."""
    trace: str = ""
    """To which trace belongs what was last asked of it."""


class Task(msgspec.Struct, frozen=True):
    """The node's part in an active migration."""

    migration: str
    side: Side
    kind: Kind
    peer: str
    epoch: int
    endpoint: str | None
    """Where the source sends, once the target waits there."""
    warm: str | None = None
    """Where the target will wait: the source may open connections already. To the target: where the VM came from."""
    rate_bytes_per_s: int | None = None
    """What the source may use of the link now."""
    policy: Policy = Policy.THROTTLE
    trace: str = ""


class Statement(msgspec.Struct, frozen=True):
    """All that the server says about one VM to one node."""

    vm: str
    order: Order
    assignment: Assignment | None = None
    task: Task | None = None
    deleted: bool = False
    """The VM is nowhere any more: nobody needs memory of it."""


class Desired(Message, frozen=True):
    """How things are to be on this node: of every VM that it owns, receives, or should no longer hold, or, if it is not
    the ``whole``, of those of which something else is to be now."""

    statements: tuple[Statement, ...]
    whole: bool = True


class ConsoleOpen(Message, frozen=True):
    channel: int
    vm: str
    kind: ConsoleKind = ConsoleKind.SERIAL


class ConsoleInput(Message, frozen=True):
    channel: int
    data: bytes


class ConsoleClose(Message, frozen=True):
    channel: int


class ProbeExpected(Request, frozen=True):
    """Another node will send a probe here."""

    probe: str
    peer: str
    seconds: float

    @property
    def reply_key(self) -> str:
        return _ready(self.probe)


class ProbeWanted(Request, frozen=True):
    """Measure the path to another node, which waits at ``endpoint``."""

    probe: str
    peer: str
    endpoint: str
    seconds: float
    vm: str | None = None
    """Foresee the move of this VM, too."""
    rate_bytes_per_s: int | None = None
    """Use no more of the link than so much."""

    @property
    def reply_key(self) -> str:
        return _over(self.probe)


class CopyExpected(Request, frozen=True):
    """Another node will send this image."""

    copy: str
    peer: str
    image: ImageInfo
    on_demand: bool
    """A VM needs it: it need not stay when no VM does."""

    @property
    def reply_key(self) -> str:
        return _ready(self.copy)


class CopyWanted(Request, frozen=True):
    """Send this image to another node, which waits at ``endpoint``."""

    copy: str
    peer: str
    endpoint: str
    image: ImageInfo
    rate_bytes_per_s: int | None = None
    """Use no more of the link than so much."""

    @property
    def reply_key(self) -> str:
        return _over(self.copy)


class ImportWanted(msgspec.Struct, frozen=True):
    """An image that is to come to this node."""

    id: str
    spec: ImportSpec
    trace: str = ""


class VolumeWanted(msgspec.Struct, frozen=True):
    """A volume that a node has, is to make, or to delete."""

    id: str
    pool: str
    size_mib: int
    phase: VolumePhase
    image: str | None = None
    """Of which image's disk it begins as a copy."""
    trace: str = ""


class Volumes(Message, frozen=True):
    """All volumes that this node is to see to."""

    volumes: tuple[VolumeWanted, ...]


class Networks(Message, frozen=True):
    """All networks that this node is to have, and no others."""

    networks: tuple[NetworkOnNode, ...]


class ExportWanted(msgspec.Struct, frozen=True):
    """An export that is to be made, or kept."""

    id: str
    vm: str
    phase: ExportPhase
    trace: str = ""


class Exports(Message, frozen=True):
    """All exports that this node is to make, or to keep; others go."""

    exports: tuple[ExportWanted, ...]


class Imports(Message, frozen=True):
    """All imports that this node is to work on; others are over."""

    imports: tuple[ImportWanted, ...]


class Ask(Request, frozen=True):
    """A question (``wire/questions.py``), answered once, by ``Answered``."""

    ask: int
    question: msgspec.Raw
    """Decoded apart, so that a question which this agent does not know is answered, too."""

    @property
    def reply_key(self) -> str:
        return str(self.ask)


class Rename(Message, frozen=True):
    """The node has another name now: it asks for a certificate, and begins anew under it."""

    name: str


class CertificateIssued(Message, frozen=True):
    """The certificate (PEM) for the node's last request."""

    certificate: bytes


FromServer = (
    Desired
    | Beaten
    | Peers
    | Imports
    | Exports
    | Volumes
    | Networks
    | Ask
    | ConsoleOpen
    | ConsoleInput
    | ConsoleClose
    | ProbeExpected
    | ProbeWanted
    | CopyExpected
    | CopyWanted
    | CertificateIssued
    | Rename
)
