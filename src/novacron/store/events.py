"""What happened, written in the transaction that made it happen."""

from __future__ import annotations

from novacron.store.database import Connection

SYSTEM = "system"


async def record(
    connection: Connection, kind: str, object: str, name: str, reason: str, message: str, actor: str = SYSTEM, *,
    project: str | None = None,
) -> None:  # fmt: skip
    """Add one line to the log of ``object``, for example ``("vm", "vm-x", "web", "Created", ...)``. ``project``: by
    default the object's, as the database knows it."""
    await connection.execute(
        "INSERT INTO events (kind, object, name, reason, message, actor, project) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        kind,
        object,
        name,
        reason,
        message[:2000],
        actor,
        project,
    )
