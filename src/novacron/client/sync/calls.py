# Made of aio/calls.py by script/generate: change that, and run it.
"""All calls of the API, by subject."""

from __future__ import annotations

from novacron.client.sync.access import AccessCalls
from novacron.client.sync.backups import BackupCalls
from novacron.client.sync.guests import GuestCalls
from novacron.client.sync.images import ImageCalls
from novacron.client.sync.keys import KeyCalls
from novacron.client.sync.networks import NetworkCalls
from novacron.client.sync.nodes import NodeCalls
from novacron.client.sync.plans import PlanCalls
from novacron.client.sync.replicas import ReplicaCalls
from novacron.client.sync.vm_templates import TemplateCalls
from novacron.client.sync.vms import VmCalls
from novacron.client.sync.volumes import VolumeCalls


class ApiCalls(
    VmCalls, GuestCalls, VolumeCalls, ImageCalls, NetworkCalls, NodeCalls,
    AccessCalls, KeyCalls, BackupCalls, ReplicaCalls, PlanCalls, TemplateCalls,
):  # fmt: skip
    """A method for each route. They take and return dictionaries, as the API has them."""
