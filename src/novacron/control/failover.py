"""Starts highly available VMs elsewhere when their node has failed: once its lease is over, and it may be so."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from novacron.control.fencing import Fenced, cut_off
from novacron.control.objects import Objects
from novacron.model.lease import Sign, may_take_over
from novacron.store import events, failover, leases
from novacron.store.database import Database
from novacron.store.fleet_index import FleetIndex
from novacron.store.leases import Silent
from novacron.telemetry import logs

log = logs.get(__name__)

DECISION_S_MIN = 60.0
"""So long after a node was said to have failed it is not said that its VMs may still run: voters may come and go."""
NODES_AT_ONCE = 256
"""Nodes that are fenced side by side, each in a task of its own."""
TAKE_OVER_S_MAX = 600.0
"""Time limit of fencing a node and asking for all of its VMs to be started elsewhere."""
MEANS = {
    Sign.DEAD: "nobody hears it",
    Sign.ISOLATED: "other nodes hear it, and it reports that it hears nothing from the control plane",
    Sign.PARTITIONED: "other nodes hear it, but its messages don't reach the control plane",
}


class SilenceDecision(NamedTuple):
    """What was recorded about a silent node, and when, on the controller's clock."""

    reason: str
    at_s: float


class Failover(msgspec.Struct):
    """``fence`` is a program that cuts a node off, given its name: it exits with 0 once that is done."""

    fence: Path | None = None
    index: FleetIndex | None = None
    """The fleet in memory."""
    decided: dict[str, SilenceDecision] = {}
    """What was recorded last about nodes that are silent now."""
    clock: Callable[[], float] = time.monotonic

    async def step(self, database: Database, objects: Objects) -> None:
        """Begin to take over from nodes whose lease is over. No pass waits for them: a fence command may hang."""
        async with database.connection() as connection:
            silent = {node.node: node for node in await leases.over(connection)}
            steady = await leases.steady(connection) if silent else set()
        self.decided = {node: decision for node, decision in self.decided.items() if node in silent}

        async def take_over(name: str) -> None:
            node = silent[name]
            if await self._may_take_over(database, node, steady):
                await _restart(database, node, objects, self.index)

        objects.start(silent, take_over, count_max=NODES_AT_ONCE, limit_s=TAKE_OVER_S_MAX)

    async def _may_take_over(self, database: Database, node: Silent, steady: set[str]) -> bool:
        """Decide whether a silent node's VMs may be started elsewhere; if so, fence it."""
        if not may_take_over(steady, node.voters):
            heard = sorted(steady & set(node.voters))
            await self._decide(
                database, node, "FailoverHeld",
                f"{node.sign}: {MEANS[node.sign]}; but only {len(heard)} of {len(node.voters)} voters hear this server"
                " for long enough, so its VMs may still run and are not started elsewhere",
            )  # fmt: skip
            return False
        await self._decide(
            database, node, "Failed", f"{node.sign}: {MEANS[node.sign]}; its highly available VMs start elsewhere"
        )
        if not node.fenced:
            await self._fence(database, node)
        return True

    async def _decide(self, database: Database, node: Silent, reason: str, message: str) -> None:
        before = self.decided.get(node.node)
        if before is not None:
            too_soon = reason == "FailoverHeld" and self.clock() - before.at_s < DECISION_S_MIN
            if before.reason == reason or too_soon:
                return
        self.decided[node.node] = SilenceDecision(reason, self.clock())
        log.warning("a node has failed", node=node.node, sign=node.sign, decided=message)
        async with database.transaction() as connection:
            await events.record(connection, events.NewEvent("node", node.node, node.node, reason, message))

    async def _fence(self, database: Database, node: Silent) -> None:
        """Cut a node off, if there is a way. If that fails, its lease is over all the same."""
        began_s = self.clock()
        done = Fenced(cut_off=False) if self.fence is None else await cut_off(self.fence, node.node)
        async with database.transaction() as connection:
            took_s = self.clock() - began_s
            await leases.fenced(connection, node.node, cut_off=done.cut_off, silent_s=took_s)
            if self.fence is not None:
                await events.record(connection, _fenced(node.node, done))


def _fenced(node: str, done: Fenced) -> events.NewEvent:
    if done.cut_off:
        return events.NewEvent("node", node, node, "Fenced", "the fence command succeeded")
    why = f"the fence command failed: {done.error}; its lease has ended, and its lease guards have stopped its VMs"
    return events.NewEvent("node", node, node, "FenceFailed", why)


async def _restart(database: Database, node: Silent, objects: Objects, index: FleetIndex | None) -> None:
    """Start the highly available VMs of a failed node elsewhere, the most important first."""
    why = f"node {node.node} is silent for {node.silent_s:.0f} s; {MEANS[node.sign]}"

    async def restart(vm: str) -> None:
        async with database.transaction() as connection:
            target = await failover.restart_elsewhere(connection, vm, node.node, why, index)
        if target is not None:
            log.warning("a VM is started elsewhere", vm=vm, node=node.node, target=target)

    async with database.connection() as connection:
        vms = await failover.waiting(connection, node.node)
    await objects.each(vms, restart)
