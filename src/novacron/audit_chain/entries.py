"""An entry of the chain: a record with its place, and the hash that the next entry repeats.

The hash covers commitments to what may name a person, not the values: destroying a value and its salt erases it, and
the chain still verifies. ``docs/reference/audit-log.md`` has the format, precise enough for another implementation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import msgspec

PERSONAL = ("actor", "address", "path", "object", "name", "detail")
"""Fields of a record that may name a person: the hash covers commitments to them."""
OTHERS = ("user_id", "token", "method", "action", "project", "outcome", "status", "request_id")
"""The other fields of a record, besides its id and its time."""
SALT_BYTES = 16
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ChainedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record of the audit log, as the chain covers it."""

    id: int
    at: datetime
    actor: str
    user_id: str | None
    token: str | None
    address: str
    method: str
    path: str
    action: str
    object: str | None
    name: str | None
    project: str | None
    outcome: str
    status: int
    detail: str
    request_id: str


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of an entry's salt once personal fields were erased."""

    pseudonyms: list[str]
    """What the erased fields contain now."""
    commitments: dict[str, str]
    """Of the erased fields."""
    salts: dict[str, str]
    """Of the others."""


class ChainEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A place in the chain, with its record; None: the record is missing. Hashes and salts are hexadecimal."""

    seq: int
    """The number of the entry: 1 for the first one that there ever was."""
    record_id: int
    previous: str
    """The hash of the entry before."""
    hash: str
    salt: str | None
    """None: personal fields were erased, see ``erased``."""
    erased: Erased | None
    record: ChainedRecord | None


def microseconds(moment: datetime) -> int:
    """Return a time as microseconds since 1970, the form that is hashed."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def genesis(chain: str) -> str:
    """Return the hash that the first entry of a chain repeats."""
    return hashlib.sha256(b"novacron audit chain 1\n" + chain.encode()).hexdigest()


def new_salt() -> str:
    return os.urandom(SALT_BYTES).hex()


def salts_of(salt: str) -> dict[str, str]:
    """Return the salt of each personal field."""
    expanded = hashlib.shake_256(bytes.fromhex(salt)).hexdigest(SALT_BYTES * len(PERSONAL))
    width = 2 * SALT_BYTES
    return {field: expanded[width * n : width * (n + 1)] for n, field in enumerate(PERSONAL)}


def commitment(salt: str, value: str | None) -> str:
    """Return what stands for a value in the hash. Whoever has not the salt can't find the value by trying."""
    content = b"\0" if value is None else b"\1" + value.encode(errors="surrogatepass")
    return hashlib.sha256(bytes.fromhex(salt) + content).hexdigest()


def commitments(record: ChainedRecord, salt: str | None, erased: Erased | None) -> dict[str, str]:
    """Return the commitments to a record's personal fields. Raises ValueError if salts are missing."""
    kept = {} if erased is None else erased.commitments
    if salt is None and erased is None:
        raise ValueError("the salt is missing")
    salts = salts_of(salt) if salt is not None else {} if erased is None else erased.salts
    missing = [field for field in PERSONAL if field not in kept and field not in salts]
    if missing:
        raise ValueError(f"the salt of {', '.join(missing)} is missing")
    return {field: kept[field] if field in kept else commitment(salts[field], getattr(record, field))
            for field in PERSONAL}  # fmt: skip


def hash_of(seq: int, previous: str, record: ChainedRecord, committed: Mapping[str, str]) -> str:
    """Return the hash of an entry."""
    content = [
        seq, previous, record.id, microseconds(record.at), *(getattr(record, field) for field in OTHERS),
        *(committed[field] for field in PERSONAL),
    ]  # fmt: skip
    return hashlib.sha256(b"novacron audit entry 1\n" + msgspec.json.encode(content)).hexdigest()


def matches(entry: ChainEntry) -> bool:
    """Say whether an entry's record is the one that was hashed, at this place."""
    return entry.record is not None and fits(entry, entry.record)


def fits(entry: ChainEntry, record: ChainedRecord) -> bool:
    """Say whether an entry was made for this record."""
    try:
        committed = commitments(record, entry.salt, entry.erased)
    except ValueError:
        return False
    return hash_of(entry.seq, entry.previous, record, committed) == entry.hash


def append(seq: int, previous: str, record: ChainedRecord) -> ChainEntry:
    """Return the entry of a record that follows the one with number ``seq`` and hash ``previous``."""
    salt = new_salt()
    hash = hash_of(seq + 1, previous, record, commitments(record, salt, None))
    return ChainEntry(
        seq=seq + 1, record_id=record.id, previous=previous, hash=hash, salt=salt, erased=None, record=record
    )


def erase(entry: ChainEntry, record: ChainedRecord, fields: frozenset[str], pseudonym: str) -> Erased:
    """Return what stays of an entry's salt when a pseudonym takes the place of fields of its record."""
    committed = commitments(record, entry.salt, entry.erased)
    salts = salts_of(entry.salt) if entry.salt is not None else {} if entry.erased is None else entry.erased.salts
    before = [] if entry.erased is None else entry.erased.pseudonyms
    gone = fields | (frozenset() if entry.erased is None else entry.erased.commitments.keys())
    return Erased(
        pseudonyms=[*before, pseudonym],
        commitments={field: committed[field] for field in PERSONAL if field in gone},
        salts={field: salts[field] for field in PERSONAL if field not in gone},
    )
