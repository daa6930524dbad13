"""The chain of the audit log: records are linked after they are committed, in the order of the change feed.

Requests do nothing for it. One process at a time links what is there (``control/audit_chain.py``), a batch in a
transaction: a record is linked once its transaction and all earlier ones have ended, so that none can appear before it
any more (``feed.py`` has the reason).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import asyncpg
import msgspec

from novacron.audit_chain import entries
from novacron.audit_chain.entries import ChainedRecord, ChainEntry, Erased
from novacron.audit_chain.heads import PublicKey, SignedHead, SigningKey
from novacron.audit_chain.verification import ChainState
from novacron.store.database import Connection

BATCH_MAX = 500
"""Records that one transaction links."""
STRAYS_MAX, UNCHAINED_MAX = 100, 10_000
"""Records that are counted or named when somebody asks."""
FIELDS = ", ".join(f"a.{field}" for field in ChainedRecord.__struct_fields__)
HORIZON = "pg_snapshot_xmin(pg_current_snapshot())"
UNLINKED = "(a.txid, a.id) > ((SELECT txid FROM audit_chain), (SELECT record FROM audit_chain))"
NEXT = f"(SELECT a.id FROM audit a WHERE {UNLINKED} AND a.txid < {HORIZON} ORDER BY a.txid, a.id LIMIT 1)"
"""The next record to link. For EXISTS, PostgreSQL would read the whole table when there is none."""


class ChainEnd(NamedTuple):
    """Where the chain begins and ends, and the last record that it has: its transaction and its id."""

    id: str
    start_seq: int
    seq: int
    hash: str
    txid: int
    record: int


def _record(row: asyncpg.Record) -> ChainedRecord:
    return msgspec.convert({field: row[field] for field in ChainedRecord.__struct_fields__}, ChainedRecord)


async def waits(connection: Connection) -> bool:
    """Say whether there are records to link."""
    return bool(await connection.fetchval(
        f"SELECT {NEXT} IS NOT NULL"
    ))  # fmt: skip


async def oldest_unchained_s(connection: Connection) -> float:
    """Return how old the oldest record is that is not linked; 0: there is none."""
    age_s: float = await connection.fetchval(
        "SELECT coalesce((SELECT extract(epoch FROM now() - a.at) FROM audit a"
        f" WHERE {UNLINKED} ORDER BY a.txid, a.id LIMIT 1), 0)::float"
    )
    return max(0.0, age_s)


async def lock(connection: Connection) -> ChainEnd:
    """Return the end of the chain. Nobody else changes the chain before this transaction ends."""
    row: Any = await connection.fetchrow(
        "SELECT id, start_seq, seq, hash, txid::text AS txid, record FROM audit_chain FOR UPDATE"
    )
    return ChainEnd(row["id"], row["start_seq"], row["seq"], row["hash"].hex(), int(row["txid"]), row["record"])


async def link(connection: Connection) -> int:
    """Link the next records; return how many: less than ``BATCH_MAX`` if there are no more for now."""
    end = await lock(connection)
    rows = await connection.fetch(
        f"SELECT {FIELDS}, a.txid::text AS txid FROM audit a"
        f" WHERE (a.txid, a.id) > ($1::text::xid8, $2) AND a.txid < {HORIZON} ORDER BY a.txid, a.id LIMIT $3",
        str(end.txid), end.record, BATCH_MAX,
    )  # fmt: skip
    if not rows:
        return 0
    linked = await connection.fetch(
        "SELECT record FROM audit_links WHERE record = ANY($1)", [row["id"] for row in rows]
    )
    known = {row["record"] for row in linked}
    records = [_record(row) for row in rows if row["id"] not in known]
    added = await asyncio.to_thread(_entries, end, records)
    await _add(connection, added)
    seq, hash = (added[-1].seq, added[-1].hash) if added else (end.seq, end.hash)
    await connection.execute(
        "UPDATE audit_chain SET seq = $1, hash = $2, txid = $3::text::xid8, record = $4",
        seq, bytes.fromhex(hash), rows[-1]["txid"], rows[-1]["id"],
    )  # fmt: skip
    return len(rows)


def _entries(end: ChainEnd, records: Sequence[ChainedRecord]) -> list[ChainEntry]:
    seq, hash, added = end.seq, end.hash, list[ChainEntry]()
    for record in records:
        entry = entries.append(seq, hash, record)
        seq, hash = entry.seq, entry.hash
        added.append(entry)
    return added


async def _add(connection: Connection, added: Sequence[ChainEntry]) -> None:
    await connection.execute(
        "INSERT INTO audit_links (seq, record, previous, hash, salt)"
        " SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bytea[], $5::bytea[])",
        [entry.seq for entry in added], [entry.record_id for entry in added],
        [bytes.fromhex(entry.previous) for entry in added], [bytes.fromhex(entry.hash) for entry in added],
        [bytes.fromhex(entry.salt or "") for entry in added],
    )  # fmt: skip


async def begin_again_after_restore(connection: Connection) -> bool:
    """Find out whether the database was copied to another one, whose transactions count from the beginning: then what
    it holds is old, whatever its transactions were. Say whether that is so."""
    end = await lock(connection)
    newest = int(await connection.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text"))
    if end.txid < newest:
        return False
    await connection.execute("SET LOCAL statement_timeout = 0")
    await connection.execute("SET LOCAL novacron.audit = 'erase'")
    await connection.execute("UPDATE audit SET txid = '0' WHERE txid > $1::text::xid8", str(newest))
    await connection.execute("UPDATE audit_chain SET txid = '0', record = 0")
    return True


async def head_due(connection: Connection, after_s: float, records_max: int) -> bool:
    """Say whether the chain has gone on since the last head, and that is so old or so many records ago; the first one
    is due once all records are linked that were there before."""
    return bool(await connection.fetchval(
        "SELECT c.seq > coalesce(h.seq, 0) AND CASE WHEN h.seq IS NULL"
        f" THEN {NEXT} IS NULL"
        " ELSE h.at < now() - make_interval(secs => $1) OR c.seq - h.seq >= $2 END"
        " FROM audit_chain c LEFT JOIN (SELECT seq, at FROM audit_heads ORDER BY seq DESC LIMIT 1) AS h ON true",
        float(after_s), records_max,
    ))  # fmt: skip


async def sign(connection: Connection, key: SigningKey) -> SignedHead:
    """Sign a head at the end of the chain."""
    end = await lock(connection)
    head = key.sign(end.id, end.seq, end.hash, await connection.fetchval("SELECT now()"))
    await connection.execute(
        "INSERT INTO audit_heads (seq, hash, at, key, signature) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (seq) DO UPDATE SET at = $3, key = $4, signature = $5",
        head.seq, bytes.fromhex(head.hash), head.at, head.key, bytes.fromhex(head.signature),
    )  # fmt: skip
    return head


async def register(connection: Connection, key: SigningKey, server: str) -> bool:
    """Make a server's key known; say whether it was not."""
    added = await connection.fetchval(
        "INSERT INTO audit_keys (id, public_key, server) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING true",
        key.id, bytes.fromhex(key.public_key), server,
    )  # fmt: skip
    return bool(added)


async def cut(connection: Connection, retention_s: float) -> int:
    """Remove the oldest segment, up to a signed head, if all of it is older than so many seconds; return how many
    records that are. The head stays: what is left of the chain begins there."""
    end = await lock(connection)
    row: Any = await connection.fetchrow(
        "SELECT seq, hash FROM audit_heads WHERE seq > $1 AND at < now() - make_interval(secs => $2) ORDER BY seq"
        " LIMIT 1",
        end.start_seq, float(retention_s),
    )  # fmt: skip
    if row is None:
        return 0
    await connection.execute("SET LOCAL statement_timeout = '60s'")
    done = await connection.execute(
        "DELETE FROM audit a USING audit_links l WHERE l.seq <= $1 AND l.record = a.id", row["seq"]
    )
    await connection.execute("DELETE FROM audit_links WHERE seq <= $1", row["seq"])
    await connection.execute("DELETE FROM audit_heads WHERE seq < $1", row["seq"])
    await connection.execute("UPDATE audit_chain SET start_seq = $1, start_hash = $2", row["seq"], row["hash"])
    return int(done.rpartition(" ")[2])


async def due_for_cut(connection: Connection, retention_s: float, slack_s: float) -> bool:
    """Say whether there is a record that is older than is to be kept by so many seconds."""
    return bool(await connection.fetchval(
        "SELECT EXISTS (SELECT FROM audit_chain c JOIN audit_heads h ON h.seq > c.start_seq"
        " WHERE h.at < now() - make_interval(secs => $1))",
        float(retention_s + slack_s),
    ))  # fmt: skip


async def state(connection: Connection) -> ChainState:
    """Return what the chain is now."""
    row: Any = await connection.fetchrow(
        "SELECT id, start_seq, start_hash, seq, hash, txid::text AS txid, record FROM audit_chain"
    )
    place = (row["txid"], row["record"])
    strays = await connection.fetch(
        "SELECT a.id FROM audit a WHERE (a.txid, a.id) <= ($1::text::xid8, $2)"
        " AND NOT EXISTS (SELECT FROM audit_links l WHERE l.record = a.id) ORDER BY a.id LIMIT $3",
        *place, STRAYS_MAX,
    )  # fmt: skip
    waiting: Any = await connection.fetchrow(
        "SELECT count(*) AS count, coalesce(extract(epoch FROM now() - min(at)), 0)::float AS oldest FROM (SELECT a.at"
        " FROM audit a WHERE (a.txid, a.id) > ($1::text::xid8, $2) ORDER BY a.txid, a.id LIMIT $3) AS waiting",
        *place, UNCHAINED_MAX,
    )  # fmt: skip
    keys = await connection.fetch("SELECT * FROM audit_keys ORDER BY created_at")
    return ChainState(
        chain=row["id"], start_seq=row["start_seq"], start_hash=row["start_hash"].hex(), seq=row["seq"],
        hash=row["hash"].hex(), unchained=waiting["count"], unchained_oldest_s=max(0.0, waiting["oldest"]),
        strays=[stray["id"] for stray in strays],
        keys=[PublicKey(id=key["id"], public_key=key["public_key"].hex(), server=key["server"],
                        created_at=key["created_at"]) for key in keys],
    )  # fmt: skip


async def read(connection: Connection, after: int, limit: int) -> list[ChainEntry]:
    """Return the entries after number ``after``, with their records."""
    rows = await connection.fetch(
        f"SELECT l.seq, l.record AS record_id, l.previous, l.hash, l.salt, l.erased, {FIELDS}"
        " FROM audit_links l LEFT JOIN audit a ON a.id = l.record WHERE l.seq > $1 ORDER BY l.seq LIMIT $2",
        after, limit,
    )  # fmt: skip
    return [_entry(row) for row in rows]


async def records(connection: Connection, ids: Sequence[int]) -> list[tuple[ChainedRecord, ChainEntry | None]]:
    """Return records by their ids, each with its entry, if it has one yet."""
    rows = await connection.fetch(
        f"SELECT l.seq, l.record AS record_id, l.previous, l.hash, l.salt, l.erased, {FIELDS}"
        " FROM audit a LEFT JOIN audit_links l ON l.record = a.id WHERE a.id = ANY($1)",
        ids,
    )  # fmt: skip
    return [(_record(row), None if row["seq"] is None else _entry(row)) for row in rows]


def _entry(row: asyncpg.Record) -> ChainEntry:
    return ChainEntry(
        seq=row["seq"], record_id=row["record_id"], previous=row["previous"].hex(), hash=row["hash"].hex(),
        salt=None if row["salt"] is None else row["salt"].hex(),
        erased=None if row["erased"] is None else msgspec.convert(row["erased"], Erased),
        record=None if row["id"] is None else _record(row),
    )  # fmt: skip


async def heads(connection: Connection, after: int, limit: int) -> list[SignedHead]:
    """Return the signed heads from entry ``after`` on, that one included."""
    rows = await connection.fetch(
        "SELECT c.id AS chain, h.* FROM audit_heads h, audit_chain c WHERE h.seq >= $1 ORDER BY h.seq LIMIT $2",
        after, limit,
    )  # fmt: skip
    return [
        SignedHead(chain=row["chain"], seq=row["seq"], hash=row["hash"].hex(), at=row["at"], key=row["key"],
             signature=row["signature"].hex())
        for row in rows
    ]  # fmt: skip
