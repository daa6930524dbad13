"""Imports of images: what users ask for, and how far the nodes are."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from typing import NamedTuple

import asyncpg
import msgspec

from novacron.model import limits
from novacron.model.errors import (
    Conflict,
    IllegalState,
    InvalidInput,
    NoCapacity,
    NotFound,
    QuotaExceeded,
    Unavailable,
)
from novacron.model.fit import refusal_of_all
from novacron.model.image import Import, ImportPhase, ImportSpec, Source
from novacron.model.node import ImageInfo, Node
from novacron.model.project import check
from novacron.model.waiting import WaitCode
from novacron.store import events, nodes, projects
from novacron.store.database import Connection
from novacron.store.hindered import ERROR_LENGTH_MAX, hindrance
from novacron.store.rows import Decoded, decode, object_of
from novacron.telemetry import traces

REASONS_MAX = 3
"""Nodes of which an error says why they take no image."""


def _import(row: asyncpg.Record | None) -> Import:
    return object_of(Import, row)


def choose_node(every: Sequence[Node], name: str | None) -> str:
    """Return the node of this name, or without one the first that takes new work. Raises NoCapacity."""
    reasons: list[str] = []
    for node in every:
        if name in (None, node.name):
            why = refusal_of_all(node, named=name is not None)
            if why is None:
                return node.name
            reasons.append(why)
    why = "; ".join(reasons[:REASONS_MAX]) or "there are no nodes"
    raise NoCapacity(
        f"no node can import an image now: {why}" if name is None else why,
        field=None if name is None else "node", hint="see: novacron node list",
    )  # fmt: skip


async def create(connection: Connection, project: str | None, spec: ImportSpec, node: str | None, actor: str) -> Import:
    """Begin an import on ``node``, or on one that is ready, for a project or (None) for all.

    Raises NotFound, InvalidInput, Conflict, NoCapacity, Unavailable, QuotaExceeded.
    """
    every = await nodes.all(connection)
    if node is not None:
        await nodes.get(connection, node, field="node")
    for candidate in every:
        if any(image.name == spec.name for image in _images(candidate)):
            raise Conflict(
                f"node {candidate.name} already holds an image {spec.name!r}", field="name", hint="choose another name"
            )
    chosen = choose_node(every, node)
    before = None if project is None else await projects.lock_usage(connection, project)
    await _check_slots(connection, chosen, project)
    try:
        row = await connection.fetchrow(
            "INSERT INTO imports (id, spec, node, phase, project, trace) VALUES ($1, $2, $3, $4, $5, $6) RETURNING *",
            f"import-{secrets.token_hex(8)}", msgspec.to_builtins(spec), chosen, ImportPhase.RECEIVING, project,
            traces.carry(),
        )  # fmt: skip
    except asyncpg.UniqueViolationError:
        why = f"an image {spec.name!r} is already being imported"
        raise Conflict(why, field="name", hint="see: novacron image imports") from None
    await disown(connection, spec.name)  # of an image that was lost with its node
    if project is not None:
        await connection.execute(
            "INSERT INTO image_owners (name, project, encryption_key) VALUES ($1, $2, $3)",
            spec.name, project, (await projects.get(connection, project)).key_of_new,
        )  # fmt: skip
        assert before is not None
        await projects.check_quota(connection, project, before)
    import_ = _import(row)
    where = spec.location or "an upload"
    await events.record(
        connection, events.NewEvent("import", import_.id, spec.name, "ImportBegun", f"from {where} to {chosen}", actor)
    )
    return import_


async def _check_slots(connection: Connection, node: str, project: str | None) -> None:
    """Raise Unavailable if a node, or a project there, has as many unfinished imports as it may."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('imports'))")  # or many at once would not count
    row = await connection.fetchrow(
        "SELECT count(*) AS all_, count(*) FILTER (WHERE project = $2) AS own FROM imports"
        " WHERE node = $1 AND finished_at IS NULL",
        node, project,
    )  # fmt: skip
    assert row is not None
    if row["own"] >= limits.IMPORTS_PER_PROJECT_MAX:
        raise Unavailable(
            f"project {project} already has {row['own']} imports on node {node}",
            hint="wait for one to end, or abort one: novacron image imports",
        )
    if row["all_"] >= limits.IMPORTS_PER_NODE_MAX:
        raise Unavailable(
            f"node {node} already has {row['all_']} imports", hint="wait for one to end, or choose another node"
        )


async def disown(connection: Connection, image: str) -> None:
    """Forget whose an image was, and which, that is nowhere any more."""
    await connection.execute("DELETE FROM image_owners WHERE name = $1", image)
    await connection.execute("DELETE FROM image_digests WHERE name = $1", image)


async def digests(connection: Connection, names: Collection[str]) -> dict[str, str]:
    """Return which images these names mean, those of which that is known."""
    rows = await connection.fetch("SELECT name, digest FROM image_digests WHERE name = ANY($1)", sorted(names))
    return {row["name"]: row["digest"] for row in rows}


async def owners(connection: Connection, names: Collection[str]) -> dict[str, str]:
    """Return whose these images are, those that are a project's own."""
    rows = await connection.fetch("SELECT name, project FROM image_owners WHERE name = ANY($1)", sorted(names))
    return {row["name"]: row["project"] for row in rows}


async def keys(connection: Connection, names: Collection[str]) -> dict[str, str]:
    """Return the ids of the keys with which these images are encrypted, those that are."""
    rows = await connection.fetch(
        "SELECT name, encryption_key FROM image_owners WHERE name = ANY($1) AND encryption_key <> ''", sorted(names)
    )
    return {row["name"]: row["encryption_key"] for row in rows}


async def check_usable(connection: Connection, image: str, project: str) -> None:
    """Raise InvalidInput when an image is another project's."""
    owner = await connection.fetchval("SELECT project FROM image_owners WHERE name = $1", image)
    if owner not in (None, project):
        raise InvalidInput(
            f"no node holds an image named {image!r} for project {project}", field="image",
            hint="see: novacron image list",
        )  # fmt: skip


def _images(node: Node) -> tuple[ImageInfo, ...]:
    return node.status.inventory.images if node.status.inventory else ()


async def get(connection: Connection, id: str, *, lock: bool = False) -> Import:
    """Return the import. Raises NotFound."""
    row = await connection.fetchrow("SELECT * FROM imports WHERE id = $1" + (" FOR UPDATE" if lock else ""), id)
    if row is None:
        raise NotFound(f"there is no import {id!r}", hint="see: novacron image imports")
    return _import(row)


async def expected(connection: Connection, id: str, offset: int, length: int) -> Import:
    """Return an import that waits for a piece of its upload. Raises NotFound, IllegalState, InvalidInput."""
    upload = await get(connection, id)
    if upload.spec.source is not Source.UPLOAD:
        raise IllegalState(f"import {id} is not an upload: its node downloads the file itself")
    if upload.finished_at is not None or upload.aborting:
        raise IllegalState(f"import {id} has ended: {upload.error or upload.phase}")
    if offset + length > upload.spec.size_bytes:
        raise InvalidInput(
            f"{offset + length} bytes exceed the announced {upload.spec.size_bytes} bytes", field="offset"
        )
    return upload


async def working(connection: Connection, node: str) -> Decoded[Import]:
    """Return what a node is to import, and the ids of imports that can't be decoded."""
    rows = await connection.fetch(
        "SELECT * FROM imports WHERE node = $1 AND finished_at IS NULL AND NOT aborting ORDER BY created_at", node
    )
    return decode("imports", rows, _import)


class ImportReport(NamedTuple):
    """How an import stands, as its node says. ``code`` is ``error`` for programs; ``disk_bytes``: of the disk in it; 0:
    not known yet."""

    id: str
    phase: ImportPhase
    held_bytes: int = 0
    error: str = ""
    code: str = ""
    disk_bytes: int = 0


async def report(connection: Connection, node: str, report: ImportReport) -> None:
    """Store the node's report; a finished import stays finished."""
    id, phase, held_bytes, error, code, disk_bytes = report
    row = await connection.fetchrow("SELECT * FROM imports WHERE id = $1 FOR UPDATE", id)
    if row is None or row["node"] != node or row["finished_at"] is not None:
        return
    disk_mib = max(row["disk_mib"], -(-disk_bytes >> 20) if disk_bytes > 0 else 0)
    if disk_mib > row["disk_mib"] and phase is not ImportPhase.FAILED:
        try:
            await _reserve(connection, row, disk_mib)
        except QuotaExceeded as refused:
            phase, error, code = ImportPhase.FAILED, refused.detail, WaitCode.QUOTA_EXCEEDED
            disk_mib = row["disk_mib"]
    over = phase in (ImportPhase.DONE, ImportPhase.FAILED)
    await connection.execute(
        "UPDATE imports SET phase = $2, held_bytes = $3, error = $4, finished_at = CASE WHEN $5 THEN now() END,"
        " reason_code = $6, disk_mib = $7,"
        " progressed_at = CASE WHEN phase <> $2 OR held_bytes <> $3 THEN now() ELSE progressed_at END WHERE id = $1",
        id, phase, held_bytes, error[:ERROR_LENGTH_MAX], over, hindrance(error, code), disk_mib,
    )  # fmt: skip
    if phase is ImportPhase.DONE:
        await _define(connection, node, row["spec"]["name"])
    if over:
        reason, message = ("ImportDone", f"it is on {node}") if phase is ImportPhase.DONE else ("ImportFailed", error)
        await events.record(connection, events.NewEvent("import", id, row["spec"]["name"], reason, message))


async def _reserve(connection: Connection, row: asyncpg.Record, disk_mib: int) -> None:
    """Let a disk of this size count for its project. Raises QuotaExceeded."""
    if row["project"] is None:
        return
    has = await projects.lock_usage(connection, row["project"])
    more = disk_mib - max(row["disk_mib"], -(-row["spec"]["size_bytes"] >> 20))
    after = msgspec.structs.replace(has, image_mib=has.image_mib + max(0, more))
    quota = (await projects.get(connection, row["project"])).quota
    check(row["project"], quota, has, after)


async def _define(connection: Connection, node: str, name: str) -> None:
    """Let the name of an image that was imported mean what its node has now: what another node has under the name does
    not count."""
    image = next((image for image in _images(await nodes.get(connection, node)) if image.name == name), None)
    if image is not None:
        await connection.execute(
            "UPDATE image_owners SET size_mib = $2 WHERE name = $1",
            name, -(-max(image.disk_bytes, image.size_bytes) >> 20),
        )  # fmt: skip
        await connection.execute(
            "INSERT INTO image_digests (name, digest) VALUES ($1, $2)"
            " ON CONFLICT (name) DO UPDATE SET digest = excluded.digest, reported = false",
            name, image.digest,
        )  # fmt: skip


async def abort(connection: Connection, id: str, actor: str) -> Import:
    """End an import; nothing of it stays. Raises NotFound, IllegalState."""
    aborted = await get(connection, id, lock=True)
    if aborted.finished_at is not None:
        raise IllegalState(f"import {id} has ended: {aborted.phase}")
    row = await connection.fetchrow(
        "UPDATE imports SET aborting = true, phase = $2, error = 'aborted', reason_code = $3, finished_at = now()"
        " WHERE id = $1 RETURNING *",
        id, ImportPhase.FAILED, WaitCode.ABORTED,
    )  # fmt: skip
    await events.record(connection, events.NewEvent("import", id, aborted.spec.name, "ImportAborted", "aborted", actor))
    return _import(row)
