"""Certificates of nodes that end soon, or have ended, as the control plane knows them."""

from __future__ import annotations

from datetime import UTC, datetime

from novacron.store import events
from novacron.store.database import Connection

TOLD_EVERY_S = 86_400.0
TOLD_FOR_S = 14 * 86_400.0
"""How long after its end: whoever has let it be that long knows, or has given the host up."""
ENDS_AT_S = (
    "CASE jsonb_typeof(n.status -> 'certificate_ends_at_s') WHEN 'number'"
    " THEN (n.status ->> 'certificate_ends_at_s')::float8 END"
)
"""When the certificate of node ``n`` ends. What is no number in one row may not fail the query for all."""
REJOIN = "novacron node join-token --node {name}, then on its host: novacron agent --rejoin @FILE"


async def ending(connection: Connection, within_s: float) -> list[str]:
    """Return the nodes whose certificate ends within a time, or has ended, and of which nothing was said for a day."""
    rows = await connection.fetch(
        f"SELECT n.name FROM nodes n, (SELECT extract(epoch FROM clock_timestamp())::float8 AS now) c"
        f" WHERE {ENDS_AT_S} BETWEEN c.now - $2 AND c.now + $1"
        " AND NOT EXISTS (SELECT FROM events e WHERE e.object = n.name AND e.kind = 'node'"
        " AND e.reason IN ('CertificateEnding', 'CertificateEnded') AND e.at > now() - make_interval(secs => $3))"
        " ORDER BY n.name",
        within_s, TOLD_FOR_S, TOLD_EVERY_S,
    )  # fmt: skip
    return [row["name"] for row in rows]


async def warn(connection: Connection, name: str) -> None:
    """Record that a node's certificate ends soon, or has ended, and what to do. A node that is gone is left out."""
    row = await connection.fetchrow(
        "SELECT (status ->> 'certificate_ends_at_s')::float8 AS ends_at_s, status ->> 'ready' = 'true' AS ready"
        " FROM nodes WHERE name = $1",
        name,
    )
    if row is None:
        return
    ends_at = datetime.fromtimestamp(row["ends_at_s"], UTC)
    over = ends_at <= datetime.now(UTC)
    when = f"its agent's certificate {'ended' if over else 'ends'} on {ends_at:%Y-%m-%d %H:%M} UTC"
    rejoin = REJOIN.format(name=name)
    if row["ready"]:
        advice = f"it should have been renewed over the agent link: see its agent's log; or {rejoin}"
    elif over:
        advice = f"it can't connect without a new one: {rejoin}"
    else:
        advice = f"the agent renews it when it connects: start it before then; after that: {rejoin}"
    reason = "CertificateEnded" if over else "CertificateEnding"
    await events.record(connection, events.NewEvent("node", name, name, reason, f"{when}; {advice}"))
