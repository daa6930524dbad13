"""Empties nodes that are draining, and brings their VMs back: a few migrations at a time, and never by force."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from novacron.model.drain import Drain, DrainPhase, DrainPolicy, Stays
from novacron.model.errors import NovaError
from novacron.model.migration import Cause
from novacron.model.probe import MoveForeseen
from novacron.store import drains, migrations, vms
from novacron.store.database import Database
from novacron.store.drains import Waiting
from novacron.telemetry import logs

log = logs.get(__name__)

MOVABLE = ("running", "paused", "stopped", "failed")


Foresee = Callable[[str, str, str], Awaitable[MoveForeseen]]
"""Measures what a VM's move from one node to another would be like. Raises NovaError."""


class Drains(msgspec.Struct, frozen=True):
    """``foresee`` is DWCP's forecast of a move."""

    foresee: Foresee

    async def step(self, database: Database) -> None:
        async with database.connection() as connection:
            active = await drains.active(connection)
        for drain in active:
            if drain.policy is DrainPolicy.LEAVE and drain.phase is DrainPhase.DRAINING:
                await _leave(database, drain)
            await _go_on(database, drain, self.foresee)


async def _leave(database: Database, drain: Drain) -> None:
    """Give up moves that do not come to an end."""
    async with database.connection() as connection:
        found = await drains.hopeless(connection, drain)
    for migration, vm, why in found:
        async with database.transaction() as connection:
            await migrations.fail(connection, migration, f"it does not converge: {why}")
            await drains.give_up(connection, drain, vm)


async def _go_on(database: Database, drain: Drain, foresee: Foresee) -> None:
    """Begin what may begin, and say how far it is."""
    leaves = drain.phase is DrainPhase.DRAINING
    async with database.connection() as connection:
        left = await (drains.to_leave(connection, drain) if leaves else drains.to_return(connection, drain))
        moved = await drains.has_moved(connection, drain) if leaves else [vm.id for vm in left]
        room = await drains.slots(connection, drain.node)
        drain = await drains.get(connection, drain.id)
    if not left:
        async with database.transaction() as connection:
            await drains.report(connection, drain, moved, left, [], 0)
            await drains.finish(connection, drain.id, DrainPhase.DRAINED if leaves else DrainPhase.RETURNED)
        log.info("a drain is over", node=drain.node, phase=drain.phase)
        return
    stays, said = [], {one.vm: one.why for one in drain.stays}
    for vm in left:
        if vm.migration is not None:
            continue
        why = _rests(vm, drain)
        if why is None and room <= 0:
            continue
        if why is None:
            why = await _move(database, drain, vm, foresee)
            room -= why is None
        if why is not None:
            stays.append(Stays(vm.id, vm.name, why))
            if said.get(vm.id) != why:
                async with database.transaction() as connection:
                    await drains.blocked(connection, drain, vm, why)
    async with database.transaction() as connection:
        done_mib = await vms.memory_mib(connection, moved) if leaves else 0
        await drains.report(connection, drain, moved, left, stays, done_mib)


def _rests(vm: Waiting, drain: Drain) -> str | None:
    """Say why a VM is not moved now, or None if it may be."""
    if vm.id in drain.given_up:
        said = next((one.why for one in drain.stays if one.vm == vm.id), "it was given up")
        return vm.error or said
    if vm.state not in MOVABLE:
        return f"it is {vm.state}"
    return vm.error if vm.rests_s > 0 else None


async def _move(database: Database, drain: Drain, vm: Waiting, foresee: Foresee) -> str | None:
    """Begin to move a VM; return why it can't be moved, if so: it stays where it is and as it is."""
    leaves = drain.phase is DrainPhase.DRAINING
    target, cause = (None, Cause.DRAIN) if leaves else (drain.node, Cause.RETURN)
    try:
        if leaves and drain.policy is DrainPolicy.LEAVE and vm.state == "running":
            async with database.transaction() as connection:
                _, target = await migrations.choose(connection, vm.id, None, None)
            found = (await foresee(vm.id, drain.node, target)).forecast
            if not found.converges and found.downtime_ms > drains.DOWNTIME_MS_MAX:
                async with database.transaction() as connection:
                    await drains.give_up(connection, drain, vm.id)
                return f"it would not converge: {found.reason}"
        async with database.transaction() as connection:
            current = await vms.get(connection, vm.id)
            if (current.node == drain.node) is leaves:
                await migrations.create(
                    connection, vm.id, target, None, f"drain of {drain.node}", policy=drain.policy.of_migrations,
                    cause=cause,
                )  # fmt: skip
    except NovaError as error:
        return error.detail
    return None
