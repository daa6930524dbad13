"""Proves backups: has a VM made of each, which reaches nothing, and looks whether it starts.

Every server does so for the nodes that are connected to it, as only it can ask them.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Protocol, TypeVar

import msgspec

from novacron.control.objects import Objects
from novacron.model.backup import Backup
from novacron.model.backup_proof import (
    PICTURE_BYTES_MAX,
    RESTORING_S_MAX,
    UNRESTORABLE_S_MAX,
    WAITING_S_MAX,
    BackupProof,
    ProofPhase,
)
from novacron.model.errors import InvalidInput, NovaError, Unavailable
from novacron.model.guest_command import GuestCommand, NewCommand
from novacron.model.vm import Display, Vm, VmState
from novacron.model.waiting import WaitCode, refusal_code
from novacron.store import backup_proofs, backups
from novacron.store.database import Connection, Database
from novacron.wire.questions import Question, ReadConsoleLog, ReadGuestCommand, StartGuestCommand, TakeScreenshot

A = TypeVar("A")

COMMAND_WAIT_S = 2.0
LOG_BYTES = 64 * 1024
OUTPUT_SHOWN = 120
AT_ONCE = 8
"""Proofs that are looked at side by side: guests answer as slowly as they like."""


class Nodes(Protocol):
    """The nodes that are connected to this server."""

    async def ask(self, node: str, question: Question[A]) -> A:
        """Ask a node something. Raises NovaError."""

    async def connected(self) -> list[str]:
        """Return their names."""


class _NotYet(Exception):
    """The guest has not shown yet what it is to show: says what is missing."""


class BackupProofs:
    """The controller."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._attempts: dict[str, int] = {}
        """How often the command of each proof has ended without success, by the proof's VM."""

    async def step(self, database: Database, objects: Objects) -> None:
        connected = await self._nodes.connected()
        async with database.connection() as connection:
            under_way = await backup_proofs.under_way(connection, connected)
            left_over = await backup_proofs.left_over(connection)

        async def follow(id: str) -> None:
            await self._follow(database, id)

        async def delete(vm: str) -> None:
            self._attempts.pop(vm, None)
            async with database.transaction() as connection:
                await backup_proofs.delete_left_over(connection, vm)

        await objects.each(under_way, follow, at_once=AT_ONCE)
        await objects.each(left_over, delete)

    async def _follow(self, database: Database, id: str) -> None:
        async with database.connection() as connection:
            backup = await backups.get(connection, id)
        if backup.proof is None or not backup_proofs.is_under_way(backup):
            return
        if backup.proof.phase is ProofPhase.WAITING:
            await self._begin(database, backup, backup.proof)
            return
        async with database.connection() as connection:
            vm = await backup_proofs.vm_of(connection, backup)
        if vm is None:
            await self._fail(database, backup, None, "its VM was deleted", WaitCode.VM_GONE)
        elif backup.proof.phase is ProofPhase.RESTORING:
            await self._restoring(database, backup, backup.proof, vm)
        else:
            await self._starting(database, backup, backup.proof, vm)

    async def _begin(self, database: Database, backup: Backup, proof: BackupProof) -> None:
        try:
            async with database.transaction() as connection:
                await backup_proofs.begin(connection, backup.id)
        except NovaError as error:  # its node has no room, the image is not there, the project's quota is used up
            if _seconds_since(proof.since) > WAITING_S_MAX:
                await self._fail(database, backup, None, error.detail, refusal_code(error))
            else:
                await self._say(database, backup, error.detail, refusal_code(error))

    async def _restoring(self, database: Database, backup: Backup, proof: BackupProof, vm: Vm) -> None:
        if vm.clone_of is None and vm.status.state is VmState.RUNNING:
            async with database.transaction() as connection:
                current = await self._same(connection, backup)
                if current is not None:
                    await backup_proofs.enter(connection, current, ProofPhase.STARTING)
        elif vm.clone_of is None and vm.status.state is VmState.FAILED:
            await self._fail(database, backup, None, f"its VM did not start: {vm.status.reason}", vm.status.reason_code)
        elif vm.status.state is VmState.FAILED and _seconds_since(proof.since) > UNRESTORABLE_S_MAX:
            await self._fail(
                database, backup, None, vm.status.reason or "its disk can't be created", vm.status.reason_code
            )
        elif _seconds_since(proof.since) > RESTORING_S_MAX:
            why = f"its VM was not created in time: {vm.status.reason}"
            await self._fail(database, backup, None, why, WaitCode.TIME_LIMIT)
        elif vm.status.reason:
            await self._say(database, backup, vm.status.reason, vm.status.reason_code)

    async def _starting(self, database: Database, backup: Backup, proof: BackupProof, vm: Vm) -> None:
        took_s = _seconds_since(proof.since)
        if vm.status.state in (VmState.FAILED, VmState.STOPPED):
            why = f"its VM is {vm.status.state}: {vm.status.reason or 'it ended'}"
            await self._fail(database, backup, None, why, vm.status.reason_code)
            return
        try:
            answer = await self._look(vm, proof)
        except (_NotYet, NovaError) as error:
            words = str(error) if isinstance(error, _NotYet) else error.detail
            if took_s > proof.probe.timeout_s:
                await self._fail(
                    database, backup, vm, f"not within {proof.probe.timeout_s} s: {words}", WaitCode.TIME_LIMIT
                )
            else:
                await self._say(database, backup, words)
            return
        proved = msgspec.structs.replace(
            proof, phase=ProofPhase.PROVED, start_s=round(took_s, 1), answer=answer, error="", reason_code=""
        )
        await self._end(database, backup, proved, await self._picture(vm))

    async def _look(self, vm: Vm, proof: BackupProof) -> str:
        """Return what shows that a VM has started. Raises _NotYet, NovaError."""
        answers, node = list[str](), vm.node or ""
        if proof.probe.line:
            printed = await self._nodes.ask(node, ReadConsoleLog(vm.id, LOG_BYTES))
            if proof.probe.line.encode() not in printed:
                raise _NotYet(f"{proof.probe.line!r} is not on its serial console")
            answers.append(f"{proof.probe.line!r} is on its serial console")
        if proof.probe.asks_agent:
            if vm.status.guest is None:
                raise _NotYet("its guest agent does not answer")
            answers.append(f"its guest agent answers, as {vm.status.guest.hostname or 'a guest without a name'}")
        if proof.probe.command:
            answers.append(await self._run(vm.id, node, proof))
        return "; ".join(answers)

    async def _run(self, vm: str, node: str, proof: BackupProof) -> str:
        """Return what a command in the guest printed that ended well. Raises _NotYet, NovaError."""
        command, attempt = proof.probe.command, self._attempts.get(vm, 0)
        words = " ".join(command)[:OUTPUT_SHOWN]
        key = f"proof {vm} {attempt}"
        pid = await self._nodes.ask(node, StartGuestCommand(vm, key, NewCommand(command)))
        try:
            ran = await self._nodes.ask(node, ReadGuestCommand(vm, pid, COMMAND_WAIT_S))
        except (InvalidInput, Unavailable):  # also if it has ended, and somebody was told so already
            self._attempts[vm] = attempt + 1
            raise
        if ran.running:
            raise _NotYet(f"{words!r} has not ended in the guest")
        if ran.exit_code != 0:
            self._attempts[vm] = attempt + 1
            raise _NotYet(f"{words!r} ended with {_ended(ran)} in the guest: {_last_line(ran)}")
        return f"{words!r} ended with exit code 0: {_last_line(ran)}"

    async def _picture(self, vm: Vm | None) -> bytes | None:
        """Return what a VM's screen shows, as PNG; None: that can't be had."""
        if vm is None or vm.spec.display is Display.NONE or vm.node is None:
            return None
        with contextlib.suppress(NovaError):
            png = await self._nodes.ask(vm.node, TakeScreenshot(vm.id))
            return png if len(png) <= PICTURE_BYTES_MAX else None
        return None

    async def _fail(self, database: Database, backup: Backup, vm: Vm | None, error: str, code: str) -> None:
        assert backup.proof is not None
        failed = msgspec.structs.replace(
            backup.proof, phase=ProofPhase.FAILED, error=error, reason_code=code, answer="", start_s=None
        )
        await self._end(database, backup, failed, await self._picture(vm))

    async def _end(self, database: Database, backup: Backup, outcome: BackupProof, picture: bytes | None) -> None:
        async with database.transaction() as connection:
            await backup_proofs.end(connection, backup, outcome, picture)

    async def _say(self, database: Database, backup: Backup, error: str, code: str = "") -> None:
        if backup.proof is not None and (backup.proof.error, backup.proof.reason_code) != (error, code):
            async with database.transaction() as connection:
                await backup_proofs.say(connection, backup.id, error, code)

    async def _same(self, connection: Connection, seen: Backup) -> Backup | None:
        """Return the backup, locked, if its proof is as it was seen."""
        backup = await backups.get(connection, seen.id, lock=True)
        return backup if backup.proof == seen.proof else None


def _seconds_since(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()


def _ended(ran: GuestCommand) -> str:
    return f"signal {ran.signal}" if ran.exit_code is None else f"exit code {ran.exit_code}"


def _last_line(ran: GuestCommand) -> str:
    """Return the last line that a command printed, without what would play tricks on a terminal."""
    lines = (ran.stdout.strip() or ran.stderr.strip()).decode(errors="replace").splitlines()
    last = lines[-1][:OUTPUT_SHOWN] if lines else "it printed nothing"
    return "".join(character if character.isprintable() else "?" for character in last)
