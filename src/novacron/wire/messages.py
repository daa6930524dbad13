"""The messages of the agent link, by what they are about, and who sends which."""

from __future__ import annotations

from novacron.wire.asking import Answered, Ask
from novacron.wire.backups import Backups, BackupStands, BackupWanted
from novacron.wire.base import Message, Reply, Request
from novacron.wire.consoles import (
    CLOSED,
    ConsoleClose,
    ConsoleClosed,
    ConsoleInput,
    ConsoleOpen,
    ConsoleOutput,
    ConsoleTaken,
)
from novacron.wire.images import (
    Copied,
    CopyExpected,
    CopyReady,
    CopyWanted,
    Exports,
    ExportStands,
    ExportWanted,
    ImageIdle,
    ImageMissing,
    Imports,
    ImportStands,
    ImportWanted,
)
from novacron.wire.migrations import MigrationFailed, Progressed, Resumed, Stopped, TargetReady, Voted
from novacron.wire.networks import Networks, NetworksStand
from novacron.wire.nodes import (
    Authorities,
    AuthoritiesTrusted,
    Beaten,
    CertificateIssued,
    ConditionsFound,
    Heartbeat,
    HeldVm,
    Hello,
    InventoryChanged,
    Measured,
    Peer,
    Peers,
    PeerSeen,
    Rename,
    RenewCertificate,
    Revoked,
)
from novacron.wire.probes import Probed, ProbeExpected, ProbeReady, ProbeWanted
from novacron.wire.replicas import PointStands, ReplicaKept, ReplicaRound, Replicas, ReplicaSent, ReplicaStands
from novacron.wire.vms import (
    Assignment,
    Cloned,
    Contradicted,
    Desired,
    Observed,
    Removed,
    SnapshotStands,
    SnapshotWanted,
    Statement,
    Task,
    VolumeAttached,
)
from novacron.wire.volumes import VolumeHandled, Volumes, VolumeStands, VolumeWanted

PROTOCOL = 16

FromAgent = (
    Hello
    | Heartbeat
    | Measured
    | InventoryChanged
    | ConditionsFound
    | Observed
    | Cloned
    | Contradicted
    | Removed
    | TargetReady
    | Progressed
    | Stopped
    | Resumed
    | Voted
    | MigrationFailed
    | ConsoleOutput
    | ConsoleClosed
    | ConsoleTaken
    | ProbeReady
    | Probed
    | ImportStands
    | VolumeStands
    | NetworksStand
    | ExportStands
    | BackupStands
    | ReplicaStands
    | ReplicaRound
    | VolumeHandled
    | SnapshotStands
    | Answered
    | ImageMissing
    | ImageIdle
    | CopyReady
    | Copied
    | RenewCertificate
    | AuthoritiesTrusted
)

FromServer = (
    Desired
    | Beaten
    | Peers
    | Imports
    | Exports
    | Backups
    | Replicas
    | Volumes
    | Networks
    | Ask
    | ConsoleOpen
    | ConsoleInput
    | ConsoleClose
    | ConsoleTaken
    | ProbeExpected
    | ProbeWanted
    | CopyExpected
    | CopyWanted
    | CertificateIssued
    | Authorities
    | Revoked
    | Rename
)

__all__ = [
    "CLOSED",
    "PROTOCOL",
    "Answered",
    "Ask",
    "Assignment",
    "Authorities",
    "AuthoritiesTrusted",
    "BackupStands",
    "BackupWanted",
    "Backups",
    "Beaten",
    "CertificateIssued",
    "Cloned",
    "ConditionsFound",
    "ConsoleClose",
    "ConsoleClosed",
    "ConsoleInput",
    "ConsoleOpen",
    "ConsoleOutput",
    "ConsoleTaken",
    "Contradicted",
    "Copied",
    "CopyExpected",
    "CopyReady",
    "CopyWanted",
    "Desired",
    "ExportStands",
    "ExportWanted",
    "Exports",
    "FromAgent",
    "FromServer",
    "Heartbeat",
    "HeldVm",
    "Hello",
    "ImageIdle",
    "ImageMissing",
    "ImportStands",
    "ImportWanted",
    "Imports",
    "InventoryChanged",
    "Measured",
    "Message",
    "MigrationFailed",
    "Networks",
    "NetworksStand",
    "Observed",
    "Peer",
    "PeerSeen",
    "Peers",
    "PointStands",
    "ProbeExpected",
    "ProbeReady",
    "ProbeWanted",
    "Probed",
    "Progressed",
    "Removed",
    "Rename",
    "RenewCertificate",
    "ReplicaKept",
    "ReplicaRound",
    "ReplicaSent",
    "ReplicaStands",
    "Replicas",
    "Reply",
    "Request",
    "Resumed",
    "Revoked",
    "SnapshotStands",
    "SnapshotWanted",
    "Statement",
    "Stopped",
    "TargetReady",
    "Task",
    "VolumeAttached",
    "VolumeHandled",
    "VolumeStands",
    "VolumeWanted",
    "Volumes",
    "Voted",
]
