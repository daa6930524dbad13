"""How far the audit log was sent to where operators want it."""

from __future__ import annotations

from novacron.store.database import Connection


async def sent(connection: Connection, sink: str) -> int:
    """Return the last entry that was sent; for a sink that is new, or has lost what retention cut off, the one before
    the first that there is."""
    seq: int = await connection.fetchval(
        "SELECT greatest(c.start_seq, coalesce((SELECT s.seq FROM audit_sinks s WHERE s.name = $1), 0))"
        " FROM audit_chain c", sink,
    )  # fmt: skip
    return seq


async def advance(connection: Connection, sink: str, seq: int) -> None:
    """Note that everything up to an entry was sent."""
    await connection.execute(
        "INSERT INTO audit_sinks (name, seq) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET seq = $2", sink, seq
    )
