"""The index of a VM's checkpoint: its previous node sends the digests after the migration, when nobody waits.

Going back then begins at once: neither end has to announce digests first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from novacron import pki
from novacron.agent.host.endpoint import parse_endpoint
from novacron.agent.migration.known_pages import CHECKPOINT, CHECKPOINT_INDEX
from novacron.agent.migration.services import NodeServices
from novacron.agent.vm.tenant import Tenant
from novacron.dwcp.page_codec import DIGEST_BYTES, PageHash
from novacron.dwcp.page_ring import PAGE
from novacron.dwcp.pipes import BytesSink, BytesSource, OpaqueSplitter
from novacron.dwcp.receiver import ReceiveFailed, ReceiveOptions
from novacron.dwcp.sender import Sender, SendFailed, SendOptions
from novacron.telemetry import logs
from novacron.wire import messages as wire

BEGIN_S_MAX = 60.0
"""How long after a VM's arrival this may begin."""
OUTAGE_S = 5.0
INDEX_OVERHEAD = 1024

log = logs.get(__name__)


def session_of(migration: str) -> str:
    return f"{migration}.left"


async def tell(services: NodeServices, vm: str, tenant: Tenant, task: wire.Task) -> None:
    """Send the index to the node that a VM went to; if that fails, it is sent when the VM comes back."""
    raw = await asyncio.to_thread(services.pages.store.raw_index, tenant.project, CHECKPOINT, vm)
    if raw is None or task.endpoint is None:
        return
    options = SendOptions(tenant.key, services.settings.rings_dir, outage_s=OUTAGE_S)
    endpoint, session = parse_endpoint(task.endpoint), session_of(task.migration)
    try:
        async with Sender(endpoint, pki.node_host(task.peer), session, services.connections, options) as sender:
            await sender.send(BytesSource(raw), OpaqueSplitter())
    except (SendFailed, OSError, TimeoutError) as error:
        log.info("a checkpoint index was not sent ahead", vm=vm, peer=task.peer, error=str(error))


async def learn(services: NodeServices, vm: str, tenant: Tenant, task: wire.Task, is_here: Callable[[], bool]) -> None:
    """Receive the index from a VM's previous node, if it comes soon and the VM still ``is_here`` then."""
    terms = ReceiveOptions(tenant.key, services.settings.rings_dir, outage_s=OUTAGE_S)
    received = BytesSink(services.settings.pages_bytes_max // PAGE * DIGEST_BYTES + INDEX_OVERHEAD)
    try:
        with services.listener.expect(session_of(task.migration), task.peer, terms) as session:
            await session.receive(received, BEGIN_S_MAX)
        if not is_here():
            return
        hash = PageHash(tenant.key)
        save = services.pages.store.save_index
        await asyncio.to_thread(save, tenant.project, CHECKPOINT_INDEX, vm, hash, bytes(received.data))
    except (ReceiveFailed, OSError, ValueError, TimeoutError) as error:
        log.info("a checkpoint index did not arrive ahead", vm=vm, peer=task.peer, error=str(error))
