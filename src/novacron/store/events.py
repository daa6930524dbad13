"""What happened, written in the transaction that made it happen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from novacron.store.database import Connection

SYSTEM = "system"
MESSAGE_LENGTH_MAX = 2000


class Event(NamedTuple):
    """One line of an object's log, as for ``record``."""

    kind: str
    object: str
    name: str
    reason: str
    message: str
    actor: str = SYSTEM
    project: str | None = None


async def record_all(connection: Connection, happened: Sequence[Event]) -> None:
    """Add lines to the logs of several objects, in their order."""
    if happened:
        columns = list(zip(*(one._replace(message=one.message[:MESSAGE_LENGTH_MAX]) for one in happened), strict=True))
        await connection.execute(
            "INSERT INTO events (kind, object, name, reason, message, actor, project)"
            " SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])",
            *columns,
        )


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
        message[:MESSAGE_LENGTH_MAX],
        actor,
        project,
    )
