"""What a node remembers about each VM through its own death: one small file a VM, durable before it counts."""

from __future__ import annotations

import os
import re
import time
import zlib
from pathlib import Path
from typing import Annotated, Any

import msgspec

from novacron.model.cpu import CpuModel
from novacron.model.errors import MALFORMED
from novacron.model.migration import Side
from novacron.model.ownership import Claim, Order, OrderKind, OrderVerdict, OwnershipRecord, obey
from novacron.telemetry import logs

log = logs.get(__name__)

FORGET_AFTER_S = 90 * 24 * 3600
"""How long the epoch of a VM that is gone is remembered; late messages are younger than that."""
DAMAGED_SUFFIX = ".damaged"
EPOCH_MAX = 2**53
RECORD_BYTES_MAX = 1 << 20


class PostCopy(msgspec.Struct, frozen=True):
    """A guest that runs at the target while its memory follows it. ``peer`` is the other node, ``endpoint`` where the
    target waits, which its source has to know."""

    migration: str
    side: Side
    peer: str
    endpoint: str = ""


class AnewAsked(msgspec.Struct, frozen=True):
    """The guest was asked, or is to be made, to begin anew, and has not been seen to."""

    reboots: int
    """``spec.reboots`` then: so many are done once it has."""
    at: float
    """When, in seconds since the epoch; 0: it is to be reset at once."""


class Record(msgspec.Struct, frozen=True):
    """What is remembered of one VM."""

    held: OwnershipRecord = OwnershipRecord()
    machine: str = ""
    """QEMU machine type, with its version, that the VM was first started with."""
    cpu: CpuModel | None = None
    """The processor that it was started with last."""
    halted_at_start: int | None = None
    """``spec.starts`` when the guest powered itself off: it stays off until a later start."""
    reboots: int = 0
    """How many reboots that were asked for are done."""
    resets: int = 0
    anew_asked: AnewAsked | None = None
    hardware_renewals: int = 0
    """How many of the spec's ``hardware_renewals`` its last start has followed."""
    booted_once_at: int = -1
    """``spec.starts`` when its guest last began from ``boot_once``; -1: it never has."""
    crashes: int = 0
    migration: str | None = None
    """The migration for which this node last sent or received."""
    post_copy: PostCopy | None = None
    """Memory that this node still has to send or receive; QEMU lives until then, whichever node owns the VM."""
    description: dict[str, Any] | None = None
    """What the server said last of a VM that is this node's: a ``VmDescription``, as JSON values, so that an agent of
    another version reads the rest. A server that knows nothing of the VM learns it from here."""
    proof: str = ""
    """What the server gave with the epoch of ``held``, to be shown to a server whose database knows less."""
    damaged: bool = False
    """What was remembered is lost, perhaps a promise: ``held`` says nothing until a later epoch than the first that
    the server has shown since."""


def obey_order(
    record: Record, order: Order, *, voted: bool = False, deleted: bool = False, proof: str = ""
) -> tuple[Record, OrderVerdict]:
    """Return what the node remembers after an order, and what it may do once that is durable.

    After damage the first epoch that the server shows may be the one at which something was promised: it binds as if
    it had been. Any later one is obeyed as usual. ``voted``: the server has this node's vote not to run the VM at the
    order's epoch. It binds, though a journal put back from an older copy knows nothing of it. ``deleted``: the VM runs
    nowhere any more, whatever was promised. ``proof`` is the server's of this order.
    """
    obeyed, verdict = _obey(record, order, voted=voted, deleted=deleted)
    return msgspec.structs.replace(obeyed, proof=_proof(record, obeyed.held, order, proof)), verdict


def _proof(before: Record, held: OwnershipRecord, order: Order, proof: str) -> str:
    """Return what proves what is held after an order: of the same epoch, and for an owner of the order to own it."""
    kept = before.proof if held.epoch == before.held.epoch else ""
    fits = held.epoch == order.epoch and (held.claim is not Claim.OWNER or order.kind is OrderKind.OWN)
    return proof if proof and fits else kept


def _obey(record: Record, order: Order, *, voted: bool, deleted: bool) -> tuple[Record, OrderVerdict]:
    if record.damaged and record.held.claim is Claim.NONE and not deleted:
        return msgspec.structs.replace(record, held=OwnershipRecord(order.epoch, Claim.RELEASED)), OrderVerdict.HOLD
    held, verdict = obey(record.held, order)
    if voted and verdict is OrderVerdict.RUN:
        held, verdict = OwnershipRecord(order.epoch, Claim.RELEASED), OrderVerdict.HOLD
    if held == record.held:
        return record, verdict
    return msgspec.structs.replace(record, held=held, damaged=False), verdict


CHECKSUM = re.compile(rb'\{"crc32":"([0-9a-f]{8})",')


class _Held(msgspec.Struct):
    epoch: Annotated[int, msgspec.Meta(ge=0, le=EPOCH_MAX)]
    claim: Claim


class _Essential(msgspec.Struct):
    """What no record lacks that was written here: without it the node would think that it has promised nothing."""

    held: _Held


def _decode(raw: bytes) -> Record:
    """Return a record. Raises ``MALFORMED`` when it is damaged."""
    if len(raw) > RECORD_BYTES_MAX:
        raise ValueError("it is too long")
    marked = CHECKSUM.match(raw)  # records that older agents wrote have none
    if marked is not None and int(marked[1], 16) != zlib.crc32(b"{" + raw[marked.end() :]):
        raise ValueError("it is damaged: its checksum does not match")
    msgspec.json.decode(raw, type=_Essential)
    return msgspec.json.decode(raw, type=Record)


def peek(directory: Path, vm: str) -> Record | None:
    """Return the record of one VM in a journal that may be another agent's, which is left as it is; None: there is no
    sound one."""
    try:
        return _decode((directory / f"{vm}.json").read_bytes())
    except (OSError, *MALFORMED):
        return None


def _encode(record: Record) -> bytes:
    """Return the bytes of a record, of which the first field is the CRC-32 of all that comes after it."""
    raw = msgspec.json.encode(record)
    return b'{"crc32":"%08x",' % zlib.crc32(raw) + raw[1:]


class Journal:
    """All records of one node."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._known = {path.name.partition(".")[0] for path in directory.glob("vm-*")}

    def load(self) -> dict[str, Record]:
        """Return every record, and forget VMs that are long gone. Raises OSError."""
        records = {}
        for path in sorted(self._directory.glob("vm-*.json")):
            record = self.load_one(path.stem)
            if record.held.claim is Claim.NONE and not record.damaged and _age_s(path) > FORGET_AFTER_S:
                path.with_suffix(DAMAGED_SUFFIX).unlink(missing_ok=True)
                path.unlink()
                continue
            records[path.stem] = record
        for path in self._directory.glob(f"vm-*{DAMAGED_SUFFIX}"):
            if path.stem not in records and not path.with_suffix(".json").exists():
                records[path.stem] = self.load_one(path.stem)
        return records

    def load_one(self, vm: str) -> Record:
        """Return the record of one VM, an empty one if nothing is remembered. Raises OSError.

        A damaged record is set aside for an operator. It may have held a promise, so the
        one that takes its place, durably, says that (``Record.damaged``).
        """
        path = self._directory / f"{vm}.json"
        try:
            with path.open("rb") as file:
                raw = file.read(RECORD_BYTES_MAX + 1)
        except FileNotFoundError:
            if not path.with_suffix(DAMAGED_SUFFIX).exists():
                return Record()
            raw = b""  # an agent set it aside, and was killed or knew no better
        except OSError as error:  # of one VM: the others' records may be sound
            log.error("a journal record can't be read", vm=vm, error=str(error))
            path.rename(path.with_suffix(f"{DAMAGED_SUFFIX}.{time.time_ns()}"))
            raw = b""
        try:
            return _decode(raw)
        except MALFORMED as error:
            # Written whole or not at all: this is damage from outside.
            log.error("a journal record is damaged: its VM is not run before a later epoch", vm=vm, error=str(error))
        record = Record(damaged=True)
        if raw or not path.with_suffix(DAMAGED_SUFFIX).exists():
            self._write(path.with_suffix(DAMAGED_SUFFIX), raw)
        self.store(vm, record)
        return record

    def knows(self, vm: str) -> bool:
        """Say, without looking at the disk, whether anything may be remembered of a VM."""
        return vm in self._known

    def has(self, vm: str) -> bool:
        """Say whether anything is remembered of a VM."""
        path = self._directory / f"{vm}.json"
        return path.exists() or path.with_suffix(DAMAGED_SUFFIX).exists()

    def store(self, vm: str, record: Record) -> None:
        """Write a record; when this returns it survives a power cut. Raises OSError."""
        self._known.add(vm)
        self._write(self._directory / f"{vm}.json", _encode(record))

    def _write(self, path: Path, content: bytes) -> None:
        """Have a file with this content, whole or not at all."""
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime
