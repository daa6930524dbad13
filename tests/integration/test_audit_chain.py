"""The audit log's hash chain in a database: order, signed heads, attacks on rows, retention, erasure."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from novacron.audit_chain import verification
from novacron.audit_chain.entries import ChainEntry
from novacron.audit_chain.heads import SigningKey
from novacron.audit_chain.verification import FaultKind, VerificationReport, Verifier
from novacron.control.audit_chain import AuditChain
from novacron.control.objects import Objects
from novacron.model.audit import AuditedRequest, AuditOutcome
from novacron.store import audit, audit_chain, erasure
from novacron.store.database import Connection, Database, connect

DAY_S = 86_400


def request(actor: str = "ann", **fields: Any) -> AuditedRequest:
    known: dict[str, Any] = {
        "actor": actor, "user_id": f"user-{actor}", "token": None, "address": "192.0.2.7", "method": "POST",
        "path": "/api/v1/vms", "action": "create_vm", "object": "vm-1", "name": "db", "project": "default",
        "outcome": AuditOutcome.DONE, "status": 201, "request_id": "r",
    }  # fmt: skip
    return AuditedRequest(**{**known, **fields})


async def write(database: Database, *requests: AuditedRequest) -> None:
    for each in requests:
        async with database.transaction() as connection:
            await audit.add(connection, [each])


def controller(retention_s: float = 400 * DAY_S, sinks: tuple[Any, ...] = ()) -> AuditChain:
    return AuditChain(SigningKey(Ed25519PrivateKey.generate()), "host-a", retention_s, sinks)


async def one_pass(controller: AuditChain, database: Database) -> None:
    objects = Objects("audit-chain")
    await controller.step(database, objects)
    failed = {key: objects.failure(key) for key in ("chain", "retention", *controller._sinks)}
    assert not any(failed.values()), failed


async def verified(database: Database) -> VerificationReport:
    async with database.connection() as connection:
        return await verify(connection)


async def verify(connection: Connection) -> VerificationReport:
    state = await audit_chain.state(connection)
    heads = await audit_chain.heads(connection, 0, 1000)
    chain = await audit_chain.read(connection, state.start_seq, 1000)
    verifier = Verifier(state, (state.start_seq, state.start_hash), heads)
    return verification.verify(verifier, chain, to_the_end=True)


async def tampering(database: Database) -> asyncpg.Connection:
    """Return the connection of somebody who owns the database."""
    connection = await connect(database.url)
    await connection.execute("ALTER TABLE audit DISABLE TRIGGER ALL")
    return connection


async def test_records_of_before_and_of_several_servers_become_one_chain_in_the_order_of_commits(
    database: Database,
) -> None:
    await write(database, *(request(f"user{n}") for n in range(5)))
    async with database.connection() as connection:  # as an upgrade finds them
        await connection.execute("ALTER TABLE audit DISABLE TRIGGER stays")
        await connection.execute("UPDATE audit SET txid = '0'")
    slow = await connect(database.url)
    transaction = slow.transaction()
    await transaction.start()
    await audit.add(slow, [request("slow")])
    await write(database, request("fast"))
    chained = controller()
    await one_pass(chained, database)
    async with database.connection() as connection:
        state = await audit_chain.state(connection)
        assert [entry.record.actor for entry in await audit_chain.read(connection, 0, 10) if entry.record] == [
            f"user{n}" for n in range(5)
        ], "what is committed waits for what began before it"
    assert state.unchained == 2 and not state.strays, "fast, and that a key was registered"
    await transaction.commit()
    await slow.close()
    others = [controller(), controller()]
    await asyncio.gather(*(one_pass(other, database) for other in [chained, *others]))
    await one_pass(chained, database)
    async with database.connection() as connection:
        chain = await audit_chain.read(connection, 0, 100)
    actors = [entry.record.actor for entry in chain if entry.record]
    assert actors[5:7] == ["slow", "fast"] and [entry.seq for entry in chain] == list(range(1, len(chain) + 1))
    report = await verified(database)
    assert report.good and report.vouched >= 5, report


ATTACKS = [
    ("UPDATE audit SET actor = 'bob' WHERE id = 3", FaultKind.CHANGED, "record 3 was changed"),
    ("DELETE FROM audit WHERE id = 3", FaultKind.REMOVED, "record 3 was removed"),
    ("WITH a AS (DELETE FROM audit WHERE id = 3) DELETE FROM audit_links WHERE record = 3", FaultKind.REMOVED,
     "entry 3 is missing"),
    ("WITH a AS (DELETE FROM audit_links WHERE record >= 5), b AS (DELETE FROM audit_heads) DELETE FROM audit"
     " WHERE id >= 5", FaultKind.REMOVED, "there was an entry 6"),
    ("UPDATE audit_links SET record = 9 - record WHERE record IN (4, 5)", FaultKind.REORDERED,
     "record 4 is at place 5, and was at 4"),
    ("INSERT INTO audit (actor, address, method, path, action, outcome, status, request_id, txid)"
     " VALUES ('bob', '-', 'POST', '/', 'create_vm', 'done', 201, 'r', '1')", FaultKind.INSERTED,
     "is in no place of the chain"),
    ("UPDATE audit_heads SET signature = sha256('x') || sha256('y')", FaultKind.HEAD, "is not signed"),
    ("UPDATE audit_chain SET start_seq = 2, start_hash = (SELECT hash FROM audit_links WHERE seq = 2)",
     FaultKind.HEAD, "no signed head vouches for the start"),
]  # fmt: skip


async def test_what_somebody_does_to_rows_is_found(database: Database) -> None:
    await write(database, *(request(f"user{n}", object=f"vm-{n}") for n in range(6)))
    await one_pass(controller(), database)
    connection = await tampering(database)
    await connection.execute("ALTER TABLE audit_links DROP CONSTRAINT audit_links_record_key")
    assert (await verify(connection)).good
    for statement, kind, says in ATTACKS:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(statement)
        report = await verify(connection)
        await transaction.rollback()
        assert any(fault.kind is kind and says in fault.message for fault in report.faults), (statement, report.faults)
    await connection.close()


async def test_old_records_go_in_whole_segments_and_a_signed_head_stays_as_the_start(database: Database) -> None:
    chained = controller(retention_s=100 * DAY_S)
    await write(database, *(request(f"old{n}") for n in range(3)))
    await one_pass(chained, database)  # signs the first head
    connection = await tampering(database)
    await connection.execute("UPDATE audit SET at = at - interval '200 days'")
    await connection.execute("DELETE FROM audit_links")
    await connection.execute("DELETE FROM audit_heads")
    await connection.execute("UPDATE audit_chain SET seq = 0, hash = start_hash, txid = '0', record = 0")
    await connection.execute("ALTER TABLE audit ENABLE TRIGGER ALL")
    await one_pass(chained, database)  # as if it had been so long ago
    key = chained._key
    row = await connection.fetchrow("SELECT c.id, h.* FROM audit_heads h, audit_chain c")
    assert row is not None
    old = key.sign(
        row["id"], row["seq"], row["hash"].hex(), await connection.fetchval("SELECT now() - interval '199 days'")
    )
    await connection.execute("UPDATE audit_heads SET at = $1, signature = $2", old.at, bytes.fromhex(old.signature))
    await write(database, request("new"))
    await one_pass(chained, database)
    await one_pass(chained, database)
    actors = [record["actor"] for record in await connection.fetch("SELECT actor FROM audit ORDER BY id")]
    assert "new" in actors and "old1" not in actors
    assert await connection.fetchval("SELECT count(*) FROM audit WHERE action = 'cut_audit_log'") == 1
    await connection.close()
    report = await verified(database)
    assert report.good and report.first == old.seq + 1 and report.vouched >= old.seq, report


async def test_a_person_is_erased_everywhere_and_the_chain_still_verifies(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute("INSERT INTO users (id, name, kind) VALUES ('user-7', 'ann', 'person')")
        await connection.execute("INSERT INTO users (id, name, kind) VALUES ('user-root', 'root', 'person')")
        await connection.execute(
            "INSERT INTO grants (id, \"user\", user_name, role) VALUES ('g', 'user-root', 'root', 'administrator')"
        )
        await connection.execute(
            "INSERT INTO events (kind, object, name, reason, message, actor)"
            " VALUES ('vm', 'vm-1', 'db', 'Created', '', 'ann'),"
            " ('user', 'user-7', 'ann', 'PasswordSet', 'x', 'root')"
        )
    anns = request("ann", user_id="user-7")
    await write(database, anns, request("bob", path="/api/v1/users/ann", object="ann", name="ann"),
                request("bob", name="ann", project="shop"))  # fmt: skip
    chained = controller()
    await one_pass(chained, database)
    await write(database, anns)  # not chained yet
    async with database.transaction() as connection:
        id, name, exists = await erasure.find(connection, "ann")
        assert (id, name, exists) == ("user-7", "ann", True)
        await connection.execute("DELETE FROM users WHERE id = $1", id)
        erased = await erasure.erase(connection, id, name)
        detail = f"data of one person was replaced in {erased.records} records"
        await audit.add(connection, [request("root", action="erase_user", name=erased.pseudonym, detail=detail,
                                             path="/api/v1/audit/erasures")])  # fmt: skip
    assert erased.records == 3
    await one_pass(chained, database)
    report = await verified(database)
    assert report.good and report.erased == 2, report
    async with database.connection() as connection:
        for table in ("audit", "audit_links", "events", "users", "api_log"):
            rows = [row["text"] for row in await connection.fetch(f"SELECT t::text AS text FROM {table} t")]  # noqa: S608
            hits = [text for text in rows if "ann" in text]
            assert len(hits) == (1 if table == "audit" else 0), "but of the VM that has the same name"
        with pytest.raises(asyncpg.RaiseError, match="stays as it is"):
            await connection.execute("UPDATE audit SET actor = 'nobody'")


async def test_a_copy_in_a_database_that_counts_transactions_anew_goes_on_with_the_same_chain(
    database: Database,
) -> None:
    await write(database, *(request(f"user{n}") for n in range(3)))
    await one_pass(controller(), database)
    connection = await tampering(database)
    await connection.execute("UPDATE audit SET txid = '4000000000'")
    await connection.execute("UPDATE audit_chain SET txid = '4000000000'")
    await connection.execute("ALTER TABLE audit ENABLE TRIGGER ALL")
    await connection.close()
    await write(database, request("later"))
    restarted = controller()
    await one_pass(restarted, database)
    await one_pass(restarted, database)
    async with database.connection() as connection_:
        state = await audit_chain.state(connection_)
        chain = await audit_chain.read(connection_, 0, 100)
    assert "later" in [entry.record.actor for entry in chain if entry.record] and not state.strays
    assert (await verified(database)).good


class Unsteady:
    """A sink that fails at first."""

    name = "unsteady"

    def __init__(self) -> None:
        self.taken: list[ChainEntry] = []
        self.failures = 1

    async def send(self, chain: list[ChainEntry]) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("it is away")
        self.taken += chain


async def test_what_a_sink_did_not_take_is_sent_again_and_nothing_is_left_out(database: Database) -> None:
    sink = Unsteady()
    chained = controller(sinks=(sink,))
    async with database.transaction() as connection:
        await audit.add(connection, [request(f"user{n}") for n in range(450)])
    await chained.step(database, Objects("audit-chain"))
    assert not sink.taken
    await one_pass(chained, database)
    assert [entry.seq for entry in sink.taken] == list(range(1, len(sink.taken) + 1)) and len(sink.taken) >= 450
    await write(database, request("next"))
    await one_pass(chained, database)
    taken = len(sink.taken)
    last = sink.taken[-1].record
    assert taken >= 451 and last is not None and msgspec.to_builtins(last)["actor"] in ("next", "system")
