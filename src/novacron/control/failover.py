"""Starts highly available VMs elsewhere when their node has failed: once its lease is over, and it may be so."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import msgspec

from novacron.model.errors import NovaError
from novacron.model.lease import Sign, may_take_over
from novacron.store import events, failover, leases
from novacron.store.database import Database
from novacron.store.leases import Silent
from novacron.telemetry import logs

log = logs.get(__name__)

FENCE_S_MAX = 30.0
FENCE_TRIES_MAX = 3
FENCE_PAUSE_S = 2.0
MEANS = {
    Sign.DEAD: "nobody hears it",
    Sign.ISOLATED: "other nodes hear it, and it says that it hears nothing from here",
    Sign.PARTITIONED: "other nodes hear it, and what it says is lost on the way here",
}


class Failover(msgspec.Struct):
    """``fence`` is a program that cuts a node off, given its name: it exits with 0 once that is done."""

    fence: Path | None = None
    decided: dict[str, str] = {}
    """What was decided about nodes that are silent now: it is said when it changes."""

    async def step(self, database: Database) -> None:
        async with database.connection() as connection:
            silent = await leases.over(connection)
            steady = await leases.steady(connection) if silent else set()
        self.decided = {node: what for node, what in self.decided.items() if any(s.node == node for s in silent)}
        for one in silent:
            why = f"node {one.node} is silent for {one.silent_s:.0f} s; {MEANS[one.sign]}"
            if not may_take_over(steady, one.voters):
                heard = sorted(steady & set(one.voters))
                await self._decide(
                    database, one, "FailoverHeld",
                    f"{one.sign}: {MEANS[one.sign]}; but only {len(heard)} of {len(one.voters)} voters hear this server"
                    " for long enough, so its VMs may still run: nothing is started elsewhere",
                )  # fmt: skip
                continue
            await self._decide(
                database, one, "Failed", f"{one.sign}: {MEANS[one.sign]}; its highly available VMs start elsewhere"
            )
            if not one.fenced:
                await self._fence(database, one)
            await self._restart(database, one, why)

    async def _decide(self, database: Database, one: Silent, reason: str, message: str) -> None:
        if self.decided.get(one.node) == message:
            return
        self.decided[one.node] = message
        log.warning("a node has failed", node=one.node, sign=one.sign, decided=message)
        async with database.transaction() as connection:
            await events.record(connection, "node", one.node, one.node, reason, message)

    async def _fence(self, database: Database, one: Silent) -> None:
        """Cut a node off, if there is a way. If that fails, its lease is over all the same."""
        said, reason = "", "Fenced"
        if self.fence is not None:
            for again in range(FENCE_TRIES_MAX):
                error = await _run(self.fence, one.node)
                said = "the fence command has cut it off" if error is None else f"the fence command failed: {error}"
                if error is None:
                    break
                reason = "FenceFailed"
                await asyncio.sleep(FENCE_PAUSE_S * (again + 1))
            else:
                said += "; its lease is over, and what kept its VMs has ended them"
            if "failed" not in said:
                reason = "Fenced"
        async with database.transaction() as connection:
            await leases.fenced(connection, one.node)
            if said:
                await events.record(connection, "node", one.node, one.node, reason, said)

    async def _restart(self, database: Database, one: Silent, why: str) -> None:
        async with database.connection() as connection:
            waiting = await failover.waiting(connection, one.node)
        for id in waiting:
            try:
                async with database.transaction() as connection:
                    chosen = await failover.restart_elsewhere(connection, id, one.node, why)
            except NovaError as error:
                log.warning("a VM can't be started elsewhere", vm=id, error=str(error))
            else:
                if chosen is not None:
                    log.warning("a VM is started elsewhere", vm=id, node=one.node, target=chosen)


async def _run(program: Path, node: str) -> str | None:
    """Run the fence command for a node; return why it failed, None if it has not."""
    try:
        process = await asyncio.create_subprocess_exec(
            str(program), node, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return f"{program}: {error.strerror}"
    try:
        async with asyncio.timeout(FENCE_S_MAX):
            out, _ = await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        return f"{program} did not end within {FENCE_S_MAX:.0f} s"
    if process.returncode == 0:
        return None
    return f"{program} exited with {process.returncode}: {out[-200:].decode(errors='replace').strip()}"
