"""Messages about nodes: hello, heartbeats, inventory, peers and certificates."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model.condition import PeersSeen, ReportedCondition
from novacron.model.database_mark import DatabaseMark
from novacron.model.finite import Finite
from novacron.model.node import Inventory
from novacron.model.ownership import OwnershipRecord
from novacron.wire.base import Message, Proof

STEADY_S_MAX = 1e9
CLOCK_S_MAX = 1e11
CONDITIONS_MAX = 16
AUTHORITIES_MAX = 16


class HeldVm(msgspec.Struct, frozen=True):
    """A VM of which a host has something. ``record`` is None if its record is damaged."""

    vm: str
    record: OwnershipRecord | None
    proof: Proof = ""
    """What the server said with the order of that epoch; empty from older agents, and where an older server gave it."""
    bound: OwnershipRecord | None = None
    """What the host has been told since its record was damaged: it obeys nothing before a later epoch."""


class Hello(Message, frozen=True):
    """First message: what the host has, and each VM of which it holds anything."""

    protocol: int
    inventory: Inventory
    held: tuple[HeldVm, ...]
    database: DatabaseMark | None = None
    """How far the server's database had come when the host was heard last."""
    boot: Annotated[str, Meta(max_length=64)] = ""
    """An id that the host's kernel makes at each boot: two hosts at a time are never one node."""
    knows_unreadable: bool = False
    """Whether the agent leaves alone what messages name as ``unreadable``. To one that does not, a kind of which
    anything is unreadable is not said."""


class PeerSeen(msgspec.Struct, frozen=True):
    """Another node answered lately. ``silent``: it hears nothing from the control plane."""

    name: str
    silent: bool


class Heartbeat(Message, frozen=True):
    """Still here. ``number`` counts those of a connection from 1; ``acknowledged`` is the last one of which the
    acknowledgement has come; ``steady_s`` is for how long they have come without a pause. See docs/adr/0023."""

    number: int
    acknowledged: int
    steady_s: Annotated[float, Meta(ge=0, le=STEADY_S_MAX)]
    voters: tuple[str, ...]
    """By whose word the node would go on without the control plane, once this is acknowledged."""
    seen: tuple[PeerSeen, ...] = ()
    clock: Annotated[float, Meta(ge=0, le=CLOCK_S_MAX)] = 0.0
    """What the node's clock said, in seconds since 1970."""


class Beaten(Message, frozen=True):
    """A heartbeat was taken: the node's lease begins anew with when it was sent."""

    number: int
    database: DatabaseMark | None = None
    """How far the database had come before that: for the node to remember."""


class Measured(Message, frozen=True):
    """How many processors each VM has used lately."""

    cpus: tuple[tuple[str, Finite], ...]


class InventoryChanged(Message, frozen=True):
    """The host's inventory is now this one."""

    inventory: Inventory


class ConditionsFound(Message, frozen=True):
    """What the agent finds of the host's disk and memory, and which peers answer: all of it, whenever it changes."""

    conditions: Annotated[tuple[ReportedCondition, ...], Meta(max_length=CONDITIONS_MAX)]
    peers: PeersSeen


class Peer(msgspec.Struct, frozen=True):
    name: str
    endpoint: str
    """Where it takes DWCP connections."""


class Peers(Message, frozen=True):
    """Other nodes: by whose word this one may go on when the server is silent, and those that it looks after."""

    voters: tuple[Peer, ...]
    watched: tuple[Peer, ...]


class Revoked(Message, frozen=True):
    """All keys whose certificates are good, but which are no node's: not any more, or not yet. Nobody connects with
    them."""

    keys: tuple[str, ...]
    """SHA-256 of each public key (SubjectPublicKeyInfo), in hexadecimal digits."""


class Authorities(Message, frozen=True):
    """Whom the node trusts from now on: the certificates of all CAs (PEM), first the one that issues. A node whose
    certificate another one has issued asks for a new one."""

    ca: bytes


class AuthoritiesTrusted(Message, frozen=True):
    """The CAs that the node trusts now."""

    authorities: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=AUTHORITIES_MAX)]
    """SHA-256 of the public key of each (SubjectPublicKeyInfo), in hexadecimal digits."""


class Rename(Message, frozen=True):
    """The node has another name now: it asks for a certificate, and begins anew under it."""

    name: str


class RenewCertificate(Message, frozen=True):
    """The node asks for a certificate for the key of this request (PEM)."""

    csr: bytes


class CertificateIssued(Message, frozen=True):
    """The certificate (PEM) for the node's last request, and that of the authority that the node trusts from now on."""

    certificate: bytes
    ca: bytes = b""
    """Empty: as before."""
