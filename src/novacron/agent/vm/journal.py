"""What a node remembers about each VM through its own death: one small file a VM, durable before it counts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from novacron.model.cpu import CpuModel
from novacron.model.migration import Side
from novacron.model.ownership import Claim, Held
from novacron.telemetry import logs

log = logs.get(__name__)

FORGET_AFTER_S = 90 * 24 * 3600
"""How long the epoch of a VM that is gone is remembered; late messages are younger than that."""


class PostCopy(msgspec.Struct, frozen=True):
    """A guest that runs at the target while its memory follows it. ``peer`` is the other node, ``endpoint`` where the
    target waits, which its source has to know."""

    migration: str
    side: Side
    peer: str
    endpoint: str = ""


class Record(msgspec.Struct, frozen=True):
    """What is remembered of one VM."""

    held: Held = Held()
    machine: str = ""
    """QEMU machine type, with its version, that the VM was first started with."""
    cpu: CpuModel | None = None
    """The processor that it was started with last."""
    halted_at_start: int | None = None
    """``spec.starts`` when the guest powered itself off: it stays off until a later start."""
    reboots: int = 0
    resets: int = 0
    crashes: int = 0
    migration: str | None = None
    """The migration for which this node last sent or received."""
    post_copy: PostCopy | None = None
    """Memory that this node has still to give or to get; QEMU must live until then, whoever owns the VM."""


class Journal:
    """All records of one node."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def load(self) -> dict[str, Record]:
        """Return every record, and forget VMs that are long gone."""
        found = {}
        for path in sorted(self._directory.glob("vm-*.json")):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=Record)
            except msgspec.DecodeError as error:
                # Written whole or not at all: this is damage from outside. Keep the file for whoever looks into it.
                log.error("a journal record is damaged", path=str(path), error=str(error))
                path.rename(path.with_suffix(".damaged"))
                continue
            if record.held.claim is Claim.NONE and time.time() - path.stat().st_mtime > FORGET_AFTER_S:
                path.unlink()
                continue
            found[path.stem] = record
        return found

    def load_one(self, vm: str) -> Record:
        """Return the record of one VM, an empty one if nothing is remembered."""
        try:
            return msgspec.json.decode((self._directory / f"{vm}.json").read_bytes(), type=Record)
        except FileNotFoundError:
            return Record()

    def store(self, vm: str, record: Record) -> None:
        """Write a record; when this returns it survives a power cut."""
        path = self._directory / f"{vm}.json"
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(record))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
