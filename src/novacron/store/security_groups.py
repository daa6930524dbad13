"""Security groups: sets of rules that interfaces of VMs share."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg
import msgspec

from novacron.model.errors import Conflict, NotFound
from novacron.model.network import RuleSpec, SecurityGroup, check_rule
from novacron.store import events
from novacron.store.database import Connection
from novacron.store.rows import object_of


def _group(row: asyncpg.Record | None) -> SecurityGroup:
    return object_of(SecurityGroup, row)


async def _checked(connection: Connection, project: str, name: str, rules: Sequence[RuleSpec]) -> tuple[RuleSpec, ...]:
    """Return rules in canonical form. Raises InvalidInput, NotFound."""
    rules = tuple(check_rule(rule) for rule in rules)
    others = {rule.group for rule in rules if rule.group not in (None, name)}
    rows = await connection.fetch(
        "SELECT name FROM security_groups WHERE name = ANY($1) AND project = $2 FOR SHARE", sorted(others), project
    )
    missing = others - {row["name"] for row in rows}
    if missing:
        raise NotFound(f"there is no security group {min(missing)!r}", field="rules")
    return rules


async def get(connection: Connection, name: str) -> SecurityGroup:
    """Return a security group, locked. Raises NotFound."""
    row = await connection.fetchrow("SELECT * FROM security_groups WHERE name = $1 FOR UPDATE", name)
    if row is None:
        raise NotFound(f"there is no security group {name!r}", hint="see: novacron security-group list")
    return _group(row)


async def create(
    connection: Connection, project: str, name: str, rules: Sequence[RuleSpec], actor: str
) -> SecurityGroup:
    """Make a security group of a project. Raises Conflict, InvalidInput, NotFound."""
    rules = await _checked(connection, project, name, rules)
    try:
        row = await connection.fetchrow(
            "INSERT INTO security_groups (name, rules, project) VALUES ($1, $2, $3) RETURNING *",
            name, msgspec.to_builtins(rules), project,
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        raise Conflict(f"a security group named {name!r} exists", field="name") from None
    await events.record(
        connection, events.NewEvent("security-group", name, name, "Created", f"{len(rules)} rules", actor)
    )
    return _group(row)


async def configure(connection: Connection, name: str, rules: Sequence[RuleSpec], actor: str) -> SecurityGroup:
    """Give a security group other rules, at once wherever it is used. Raises NotFound, InvalidInput."""
    rules = await _checked(connection, (await get(connection, name)).project, name, rules)
    row = await connection.fetchrow(
        "UPDATE security_groups SET rules = $2 WHERE name = $1 RETURNING *", name, msgspec.to_builtins(rules)
    )
    await events.record(
        connection, events.NewEvent("security-group", name, name, "Configured", f"{len(rules)} rules", actor)
    )
    return _group(row)


async def delete(connection: Connection, name: str, actor: str) -> SecurityGroup:
    """Delete a security group that no VM and no other group uses. Raises NotFound, Conflict."""
    group = await get(connection, name)
    vm = await connection.fetchval(
        "SELECT name FROM vms WHERE spec -> 'nics' @> $1 ORDER BY name LIMIT 1", [{"groups": [name]}]
    )
    if vm is not None:
        raise Conflict(f"VM {vm} uses security group {name}", hint=f"novacron vm set {vm} --security-group ...")
    other = await connection.fetchval(
        "SELECT name FROM security_groups WHERE name <> $1 AND rules @> $2 ORDER BY name LIMIT 1",
        name, [{"group": name}],
    )  # fmt: skip
    if other is not None:
        raise Conflict(f"a rule of security group {other} refers to {name}", hint="change that rule first")
    await connection.execute("DELETE FROM security_groups WHERE name = $1", name)
    await events.record(connection, events.NewEvent("security-group", name, name, "Deleted", "it was unused", actor))
    return group
