"""What nodes report of their VMs, stored together: one transaction for what comes within a few milliseconds."""

from __future__ import annotations

import asyncio

from novacron.model.errors import NovaError, Unavailable
from novacron.store import vms
from novacron.store.database import LOST, Database
from novacron.store.vms import Report
from novacron.telemetry import logs
from novacron.telemetry.values import counter, gauge

log = logs.get(__name__)

GATHER_S = 0.003
AT_ONCE_MAX = 200
WAITING_MAX = 10_000
OVER = "this server is about to end"


class Observations:
    """Stores reports in the order in which they come; ``run`` must run."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[tuple[Report, asyncio.Future[None]]] = []
        self._taken: list[tuple[Report, asyncio.Future[None]]] = []
        self._over = False
        self._wake = asyncio.Event()
        gauge("novacron_link_reports_waiting").read = lambda: {(): len(self._waiting)}

    def add(self, report: Report) -> asyncio.Future[None]:
        """Take a report; the future is done once it is stored, or fails with Unavailable. Raises Unavailable."""
        if self._over:
            raise Unavailable(OVER)
        if len(self._waiting) >= WAITING_MAX:
            raise Unavailable("too many reports wait to be stored")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda future: future.cancelled() or future.exception())  # who waits for it may be gone
        self._waiting.append((report, done))
        self._wake.set()
        return done

    async def run(self) -> None:
        """Store what comes, until cancelled; who waits then is told so, or would wait for ever."""
        try:
            await self._run()
        finally:
            self._over = True
            for _, done in (*self._taken, *self._waiting):
                if not done.done():
                    done.set_exception(Unavailable(OVER))

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_S)
            taken, self._waiting = self._waiting[:AT_ONCE_MAX], self._waiting[AT_ONCE_MAX:]
            self._taken = taken
            if not self._waiting:
                self._wake.clear()
            if not await self._store(taken):
                for one in taken:  # one of them may be what the database does not take: the others are stored
                    await self._store([one], last=True)

    async def _store(self, taken: list[tuple[Report, asyncio.Future[None]]], *, last: bool = False) -> bool:
        """Store reports; say whether they need not be tried again one by one."""
        reports, failed = [report for report, _ in taken], None
        try:
            await self._database.transact(lambda connection: vms.observe(connection, reports))
        except (NovaError, *LOST) as error:
            failed = Unavailable(f"what was reported can't be stored: {error}")
        except Exception as error:  # also a defect met with one report: it must not keep the others waiting for ever
            if not last:
                return False
            log.exception("a report can't be stored", vm=reports[0].vm, node=reports[0].node)
            failed = Unavailable(f"a report can't be stored: {error}")
        if failed is not None:
            log.warning("what nodes report can't be stored", count=len(taken), error=failed.detail)
        counter("novacron_link_reports_total").add("stored" if failed is None else "failed", count=len(taken))
        for _, done in taken:
            if not done.done():
                done.set_result(None) if failed is None else done.set_exception(failed)
        return True
