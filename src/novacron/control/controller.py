"""How a controller runs: led by one process, woken by changes, again after a while, for ever.

A *pass* looks at all of a controller's objects; ``objects`` says what the reconciler of each has to keep to.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

import asyncpg
import msgspec

from novacron.control import certificates, conditions, garbage, gateways, health, migration, plans, replicas
from novacron.control.audit_chain import AuditChain
from novacron.control.backup_proofs import BackupProofs, Nodes
from novacron.control.backups import BackupPolicies
from novacron.control.drain import Drains
from novacron.control.failover import Failover
from novacron.control.forecasts import Forecasts
from novacron.control.objects import Objects
from novacron.control.placement import PlacementController
from novacron.control.rebalance import Rebalance
from novacron.control.scheduled_moves import ScheduledMoves
from novacron.control.sessions import Sessions
from novacron.model.errors import NovaError
from novacron.model.probe import MoveForeseen
from novacron.model.token import Lifetimes
from novacron.store.database import LOST, Database
from novacron.store.feed import Change
from novacron.store.fleet_index import FleetIndex
from novacron.store.leader import leadership
from novacron.telemetry import logs, traces
from novacron.telemetry.values import counter, gauge, histogram

log = logs.get(__name__)

BACKOFF_S_MAX = 5.0

Step = Callable[[Database, Objects], Awaitable[None]]
"""One pass: finds the objects with work to do, and has ``Objects`` reconcile each."""


class Controller(msgspec.Struct, frozen=True):
    """A step, how often it runs at least, and the kinds of objects whose changes wake it."""

    name: str
    step: Step
    interval_s: float
    wakes_on: frozenset[str]
    pause_s: float = 0.02
    """Least time between two steps: changes that arrive meanwhile are handled together."""
    is_led: bool = True
    """One process makes its steps. Otherwise each does, for the nodes that are connected to it."""


ALL = (
    Controller("migration", migration.step, 2, frozenset({"migration", "link"}), pause_s=0),
    Controller("health", health.step, 2, frozenset()),
    Controller("gateways", gateways.step, 3, frozenset({"network", "node"})),
    Controller("garbage", garbage.step, 300, frozenset()),
    Controller("certificates", certificates.step, 300, frozenset()),
    Controller("conditions", conditions.step, 5, frozenset()),
    Controller("replicas", replicas.step, 15, frozenset({"replica"}), pause_s=1),
    Controller("plans", plans.step, 2, frozenset({"plan", "vm"}), pause_s=0.5),
)


class NodeLink(Nodes, Protocol):
    """The nodes, as controllers need them."""

    async def estimate_move(self, vm: str, source: str, target: str) -> MoveForeseen:
        """Return what a move would be like. Raises NovaError."""


class Controllers:
    """All controllers of this process."""

    def __init__(
        self, database: Database, index: FleetIndex, nodes: NodeLink, audit_chain: AuditChain,
        fence: Path | None = None, lifetimes: Lifetimes | None = None,
    ) -> None:  # fmt: skip
        """``index`` has the fleet in memory; ``nodes`` asks nodes, also what a move would be like; ``fence`` is a
        program that cuts a node off."""
        self._database = database
        self._all = (
            *ALL,
            Controller("placement", PlacementController(index).step, 10, frozenset({"vm", "node"}), pause_s=0.05),
            Controller("failover", Failover(fence, index=index).step, 1, frozenset({"node"})),
            Controller(
                "drain",
                Drains(nodes.estimate_move, index).step,
                5,
                frozenset({"node", "vm", "migration", "drain"}),
                pause_s=0.2,  # each change of any VM wakes it, and hardly ever does anything drain
            ),
            Controller("backups", BackupPolicies().step, 15, frozenset({"backup", "backup-policy"}), pause_s=1),
            Controller("backup-proofs", BackupProofs(nodes).step, 3, frozenset({"backup"}), pause_s=1, is_led=False),
            Controller("sessions", Sessions(lifetimes or Lifetimes()).step, 30, frozenset()),
            Controller("audit-chain", audit_chain.step, 1, frozenset()),
            Controller("rebalance", Rebalance(nodes.estimate_move, index).step, 60, frozenset()),
            Controller("scheduled-moves", ScheduledMoves(index).step, 5, frozenset()),
            Controller("forecasts", Forecasts().step, 30, frozenset()),
        )
        self._wake = {controller.name: asyncio.Event() for controller in self._all}
        self._objects = {controller.name: Objects(controller.name) for controller in self._all}

    def changed(self, change: Change) -> None:
        """Wake the controllers that a change concerns."""
        for controller in self._all:
            if change.kind in controller.wakes_on:
                self._wake[controller.name].set()

    async def run(self) -> None:
        """Run every controller until cancelled."""
        async with asyncio.TaskGroup() as group:
            for controller in self._all:
                group.create_task(self._run(controller), name=f"controller-{controller.name}")

    async def _run(self, controller: Controller) -> None:
        backoff_s = 0.1
        steps, leading = counter("novacron_controller_steps_total"), gauge("novacron_controller_leading")
        leading.set(0, controller.name)
        for outcome in ("failed", "defect"):  # an increase from nothing is not seen
            steps.cell(controller.name, outcome)
        while True:
            try:
                async with self._turn(controller) as lock:
                    log.info("leading", controller=controller.name)
                    leading.set(1, controller.name)
                    try:
                        async for _ in self._passes(controller, lock):
                            backoff_s = 0.1
                    finally:
                        await self._objects[controller.name].end()
            except (NovaError, asyncpg.PostgresError, *LOST) as error:
                steps.add(controller.name, "failed")
                log.warning("controller pauses", controller=controller.name, error=str(error), retry_s=backoff_s)
            except Exception:  # a defect of one controller must not take the others and the API away
                steps.add(controller.name, "defect")
                log.exception("defect in a controller", controller=controller.name, retry_s=backoff_s)
            leading.set(0, controller.name)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_S_MAX)

    @contextlib.asynccontextmanager
    async def _turn(self, controller: Controller) -> AsyncIterator[asyncpg.Connection | None]:
        """Wait until this process leads a controller, if one has to."""
        if not controller.is_led:
            yield None
            return
        async with leadership(self._database.url, controller.name) as lock:
            yield lock

    async def _passes(self, controller: Controller, lock: asyncpg.Connection | None) -> AsyncIterator[None]:
        """Make one pass after another while this process leads; yield after each."""
        wake, objects = self._wake[controller.name], self._objects[controller.name]
        took, steps = histogram("novacron_controller_step_duration_seconds"), counter("novacron_controller_steps_total")
        while True:
            wake.clear()
            if lock is not None:
                await lock.execute("SELECT 1")
            began = time.perf_counter()
            try:
                with traces.span(f"controller {controller.name}", parent=""):
                    await controller.step(self._database, objects)
            finally:
                objects.end_pass()
            took.observe(time.perf_counter() - began, controller.name)
            steps.add(controller.name, "done")
            gauge("novacron_controller_last_step_timestamp_seconds").set(time.time(), controller.name)
            yield
            await asyncio.sleep(controller.pause_s)
            due_in_s = objects.due_in_s()
            with contextlib.suppress(TimeoutError):
                timeout_s = controller.interval_s if due_in_s is None else min(due_in_s, controller.interval_s)
                await asyncio.wait_for(wake.wait(), timeout_s)
