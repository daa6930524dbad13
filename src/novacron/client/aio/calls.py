"""All calls of the API, by subject."""

from __future__ import annotations

from novacron.client.aio.access import AsyncAccessCalls
from novacron.client.aio.backups import AsyncBackupCalls
from novacron.client.aio.guests import AsyncGuestCalls
from novacron.client.aio.images import AsyncImageCalls
from novacron.client.aio.keys import AsyncKeyCalls
from novacron.client.aio.networks import AsyncNetworkCalls
from novacron.client.aio.nodes import AsyncNodeCalls
from novacron.client.aio.plans import AsyncPlanCalls
from novacron.client.aio.replicas import AsyncReplicaCalls
from novacron.client.aio.vm_templates import AsyncTemplateCalls
from novacron.client.aio.vms import AsyncVmCalls
from novacron.client.aio.volumes import AsyncVolumeCalls


class AsyncApiCalls(
    AsyncVmCalls, AsyncGuestCalls, AsyncVolumeCalls, AsyncImageCalls, AsyncNetworkCalls, AsyncNodeCalls,
    AsyncAccessCalls, AsyncKeyCalls, AsyncBackupCalls, AsyncReplicaCalls, AsyncPlanCalls, AsyncTemplateCalls,
):  # fmt: skip
    """A method for each route. They take and return dictionaries, as the API has them."""
