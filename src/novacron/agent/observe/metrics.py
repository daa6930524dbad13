"""What an agent says of itself, its host and its VMs when its server asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from novacron.agent.migration.services import NodeServices
from novacron.agent.observe import usage
from novacron.agent.worker import Worker
from novacron.pki import expires_at_s
from novacron.telemetry.declared import AGENT
from novacron.telemetry.metrics import text
from novacron.telemetry.values import Cells, begin, counted, gauge


class AgentMetrics:
    """All of an agent's."""

    def __init__(self, host: NodeServices, workers: Mapping[str, Worker], connected: Callable[[], bool]) -> None:
        begin(AGENT)
        self._workers = workers
        self._filesystems = usage.Filesystems(host.settings, host.storage_pools.directories)
        pages, pool, certificate = host.pages.store, host.connections, host.identity.certificate
        gauge("novacron_agent_link_connected").read = lambda: {(): connected()}
        gauge("novacron_agent_workers").read = lambda: {(): len(workers)}
        gauge("novacron_agent_images").read = lambda: {(): len(host.images)}
        gauge("novacron_agent_lease_remaining_seconds").read = lambda: {(): host.lease.remaining_s()}
        gauge("novacron_dwcp_connections_waiting").read = lambda: {(): pool.idle}
        gauge("novacron_dwcp_connections_reused").read = lambda: {(): pool.taken}
        gauge("novacron_dwcp_page_store_bytes").read = lambda: {(): pages.used_bytes()}
        gauge("novacron_dwcp_page_store_bytes_max").read = lambda: {(): host.settings.pages_bytes_max}
        gauge("novacron_certificate_expiry_timestamp_seconds").read = lambda: {
            ("node",): expires_at_s(certificate.read_bytes())
        }

    async def render(self, *, open_metrics: bool) -> bytes:
        """Return everything in one of Prometheus' formats."""
        cells_of: dict[str, Cells] = {name: dict(cells) for name, cells in counted().items()}
        of_host = [*usage.host(), *await self._filesystems.look()]
        for name, labels, value in (*of_host, *await usage.vms([worker.context for worker in self._workers.values()])):
            cells_of.setdefault(name, {})[labels] = [value]
        return await asyncio.to_thread(text, cells_of, open_metrics=open_metrics)
