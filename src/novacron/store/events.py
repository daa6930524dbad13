"""What happened, written in the transaction that made it happen."""

from __future__ import annotations

from novacron.store.database import Connection

SYSTEM = "system"


async def record(
    connection: Connection, kind: str, object: str, name: str, reason: str, message: str, actor: str = SYSTEM
) -> None:
    """Add one line to the log of ``object``, for example ``("vm", "vm-x", "web", "Created", ...)``."""
    await connection.execute(
        "INSERT INTO events (kind, object, name, reason, message, actor) VALUES ($1, $2, $3, $4, $5, $6)",
        kind,
        object,
        name,
        reason,
        message[:2000],
        actor,
    )
