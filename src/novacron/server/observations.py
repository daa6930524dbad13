"""What nodes report of their VMs, stored together: one transaction for what comes within a few milliseconds."""

from __future__ import annotations

import asyncio

import asyncpg

from novacron.model.errors import NovaError, Unavailable
from novacron.server.batcher import Batch, Batcher, settle
from novacron.store import owned
from novacron.store.database import LOST, Database
from novacron.store.events import CommonCauses
from novacron.store.owned import Report
from novacron.supervise import Rarely
from novacron.telemetry import logs
from novacron.telemetry.values import counter, gauge

log = logs.get(__name__)

GATHER_S = 0.003
AT_ONCE_MAX = 200
WAITING_MAX = 10_000


class Observations:
    """Stores reports in the order in which they come; ``run`` must run."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._batcher = Batcher[Report]("reports", GATHER_S, AT_ONCE_MAX, WAITING_MAX)
        self._log_now = Rarely()
        self._causes = CommonCauses()
        gauge("novacron_link_reports_waiting").read = lambda: {(): len(self._batcher)}

    def add(self, report: Report) -> asyncio.Future[None]:
        """Take a report; the future is done once it is stored, or fails with Unavailable. Raises Unavailable."""
        return self._batcher.add(report)

    async def run(self) -> None:
        """Store incoming reports until cancelled."""
        await self._batcher.run(self._store_batch)

    async def _store_batch(self, batch: Batch[Report]) -> None:
        if not await self._store(batch):
            for item in batch:  # one of them may be what the database does not take: the others are stored
                await self._store([item], last=True)

    async def _store(self, batch: Batch[Report], *, last: bool = False) -> bool:
        """Store reports; say whether they need not be tried again one by one."""
        reports, failed = [report for report, _ in batch], None
        try:
            await self._database.transact(lambda connection: owned.observe(connection, reports, self._causes))
        except (NovaError, *LOST) as error:
            failed = Unavailable(f"what was reported can't be stored: {error}")
        except asyncpg.DataError as error:
            if not last:
                return False
            # The node would say the same over its next connection, and over the one after that.
            if self._log_now.due(f"refused {reports[0].vm}"):
                log.error("a report is refused", vm=reports[0].vm, node=reports[0].node, error=str(error))
            counter("novacron_link_reports_total").add("refused")
            settle(batch, None)
            return True
        except Exception as error:  # also a defect met with one report: it must not keep the others waiting for ever
            if not last:
                return False
            failed = Unavailable(f"a report can't be stored: {error}")
        if failed is not None and self._log_now.due("failed"):
            log.warning("what nodes report can't be stored", count=len(batch), error=failed.detail)
        counter("novacron_link_reports_total").add("stored" if failed is None else "failed", count=len(batch))
        settle(batch, failed)
        return True
