"""Backs VMs up as policies say: asks for what is due, has it read back and proved, and deletes what no rule keeps.

Nothing is remembered between passes but where the next one goes on: whether a VM is due follows from its backups.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

from novacron.control.objects import Objects
from novacron.model.backup_policy import BackupPolicy, PolicyProblem
from novacron.model.backup_schedule import (
    TRIES_MAX,
    VmHistory,
    asked_since,
    due_since,
    offset_s,
)
from novacron.model.errors import NovaError, Unavailable
from novacron.model.waiting import refusal_code
from novacron.retention import to_keep
from novacron.store import backup_policies, backup_proofs, backups, events, vm_backups
from novacron.store.backup_calendar import Calendar
from novacron.store.backup_policies import CoveredVm
from novacron.store.database import Connection, Database, Overtaken
from novacron.telemetry import logs

log = logs.get(__name__)

Ask = Callable[[Connection, str, str], Awaitable[object]]
"""Asks for something about a backup: connection, id, actor."""
PASS_S_MAX = 2.0
"""How long a pass goes on with a policy's VMs, or with what is said of all VMs, before others have their turn."""
EXPIRED_PER_PASS_MAX = 200
VMS_PER_PASS_MAX = 500
"""VMs of whose backups of a policy one pass looks for those that no rule keeps."""
FAILURES_KEPT = TRIES_MAX
PATIENCE_S = 300.0
"""How long a VM that is due may be unable to be backed up, because it is starting for example, before that is said."""


class _Sweep:
    """One look at all VMs that a policy covers, which may take several passes."""

    def __init__(self) -> None:
        self.last = ""
        """The last VM that was looked at."""
        self.problems = list[PolicyProblem]()


class BackupPolicies:
    """The controller."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._sweeps: dict[str, _Sweep] = {}
        self._next_vm: dict[str, str] = {}
        """Of each policy: the VM behind which to go on with what no rule keeps."""
        self._refreshed = ""
        """The VM behind which to go on with what is said of its backups."""

    async def step(self, database: Database, objects: Objects) -> None:
        async def follow(id: str) -> None:
            async with database.connection() as connection:
                policy = await backup_policies.get(connection, id)
            await self._ask(database, policy)
            await self._verify(database, policy)
            await self._prove(database, policy)
            await self._expire(database, policy)

        async with database.connection() as connection:
            policies = await backup_policies.enabled(connection)
        self._next_vm = {id: vm for id, vm in self._next_vm.items() if id in policies}
        self._sweeps = {id: sweep for id, sweep in self._sweeps.items() if id in policies}
        await objects.each(policies, follow)
        await objects.each(["all VMs"], lambda _: self._refresh(database))

    async def _refresh(self, database: Database) -> None:
        """Look whether what is said of VMs' backups is true, as far as there is time."""
        began = time.monotonic()
        while True:
            async with database.transaction() as connection:
                self._refreshed = await vm_backups.refresh_after(connection, self._refreshed)
            if not self._refreshed or time.monotonic() - began > PASS_S_MAX:
                return

    async def _ask(self, database: Database, policy: BackupPolicy) -> None:
        """Ask for the backups that are due, as far as there is time; note which can't be made now, and why."""
        began, jitter = time.monotonic(), timedelta(seconds=policy.spec.jitter_s)
        async with database.connection() as connection:
            now: datetime = await connection.fetchval("SELECT now()")
        times = Calendar(policy.spec).until(now, now - jitter)
        moments = [min(now, time + jitter) for time in times[:1]]
        moments += [] if policy.run_at is None else [policy.run_at]
        sweep = self._sweeps.setdefault(policy.id, _Sweep())
        while moments:
            async with database.connection() as connection:
                covered = await backup_policies.covered_after(connection, policy, sweep.last, max(moments), TRIES_MAX)
            due = [(vm, since) for vm in covered.waiting if (since := _due_since(policy, vm, times, now)) is not None]
            sweep.problems += await self._ask_for(database, policy, due, now)
            sweep.last = covered.last
            if not sweep.last:
                del self._sweeps[policy.id]
                async with database.transaction() as connection:
                    await backup_policies.set_problems(connection, policy, sweep.problems)
                return
            if time.monotonic() - began > PASS_S_MAX:
                return

    async def _ask_for(
        self, database: Database, policy: BackupPolicy, due: Sequence[tuple[CoveredVm, datetime]], now: datetime
    ) -> list[PolicyProblem]:
        """Ask for a backup of each of these VMs; return which can't be made, and why."""
        problems, busy = list[PolicyProblem](), set[str | None]()
        for vm, since in due:
            if vm.node in busy:
                continue
            try:
                async with database.transaction() as connection:
                    await backups.create(connection, vm.id, policy.spec.repository, events.SYSTEM, policy=policy)
            except backups.NodeBusy:
                busy.add(vm.node)
            except Exception as error:  # of this VM, unless the database is away
                why = _error_of(error, policy=policy.name, vm=vm.id)
                if (now - since).total_seconds() >= self._patience_s:
                    problems.append(PolicyProblem(vm.id, vm.name, why, refusal_code(error)))
        return problems

    async def _verify(self, database: Database, policy: BackupPolicy) -> None:
        async with database.connection() as connection:
            due = await backup_policies.to_verify(connection, policy)
        await self._each(database, policy, due, backups.verify)

    async def _prove(self, database: Database, policy: BackupPolicy) -> None:
        async with database.connection() as connection:
            due = await backup_proofs.due(connection, policy)

        async def ask(connection: Connection, id: str, actor: str) -> None:
            await backup_proofs.ask(connection, id, policy.spec.probe, actor)

        await self._each(database, policy, due, ask)

    async def _expire(self, database: Database, policy: BackupPolicy) -> None:
        """Delete backups that no rule keeps, and all but the last failures."""
        async with database.connection() as connection:
            gone = list(await backup_policies.old_failures(connection, policy, FAILURES_KEPT, EXPIRED_PER_PASS_MAX))
            if policy.spec.keep.has_rules:
                after = self._next_vm.get(policy.id, "")
                made = await backup_policies.kept_backups(connection, policy, after, VMS_PER_PASS_MAX)
                by_vm = dict[str, dict[str, datetime]]()
                for backup in made:
                    by_vm.setdefault(backup.vm, {})[backup.id] = backup.created_at
                self._next_vm[policy.id] = max(by_vm) if len(by_vm) >= VMS_PER_PASS_MAX else ""
                for of_vm in by_vm.values():
                    keeping = to_keep(of_vm, policy.spec.keep)
                    gone += [id for id in of_vm if id not in keeping]
        await self._each(database, policy, gone[:EXPIRED_PER_PASS_MAX], backups.delete)

    async def _each(self, database: Database, policy: BackupPolicy, ids: Sequence[str], ask: Ask) -> None:
        for id in ids:
            try:
                async with database.transaction() as connection:
                    await ask(connection, id, events.SYSTEM)
            except Exception as error:  # of this backup, unless the database is away
                _error_of(error, policy=policy.name, backup=id)


def _error_of(error: Exception, **about: str) -> str:
    """Return what keeps one object from what is due, and log it if it is a defect. Raises ``error`` if it is nobody's
    fault: the database is away."""
    match error:
        case Overtaken() | backups.NodeAway():
            return error.detail
        case Unavailable():
            raise error
        case NovaError():
            return error.detail
        case _:
            log.exception("defect in a backup policy", **about)
            return f"an internal error, see the server's log: {type(error).__name__}"


def _due_since(policy: BackupPolicy, vm: CoveredVm, times: list[datetime], now: datetime) -> datetime | None:
    history = VmHistory(max(policy.effective_from, vm.created_at), vm.asked_at, vm.failed_at)
    own = offset_s(policy.id, vm.id, policy.spec.jitter_s)
    return asked_since(policy.run_at, history) or due_since(times, own, history, now, policy.spec.start_within_s)
