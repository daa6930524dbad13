"""What VMs use just now: ``/api/v1/vm-usage``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Router, get
from litestar.params import QueryParameter

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.read_model.vm_usage import VmUsed


class UsageOfVm(VmUsed, frozen=True, kw_only=True):
    """What a running VM has used since its QEMU began, and has now; compute rates from two samples."""

    id: str
    name: str
    project: str
    node: str
    at_s: float
    """When it was measured, in seconds of Unix time. A node measures every other second at most."""


class UsageOfVms(msgspec.Struct):
    """Of all running VMs that the caller may see, and whose nodes answer."""

    items: list[UsageOfVm]


@get("/", summary="Show the resource usage of running VMs")
async def show_vm_usage(
    request: ApiRequest, vm: Annotated[str | None, QueryParameter(description="only this one, by id or name")] = None
) -> UsageOfVms:
    context = services(request)
    condition = authorization.visible(request, "vm")
    entries = context.cache.all("vm").values() if vm is None else [authorization.seen(request, "vm", vm)]
    bodies = [
        entry.body
        for entry in entries
        if entry.body["node"] is not None
        and (condition is None or any(entry.body[field] == value for field, value in condition))
    ]
    samples = await context.usage.of(body["node"] for body in bodies)
    items = [
        UsageOfVm(
            id=body["id"], name=body["name"], project=body["project"], node=body["node"],
            at_s=samples[body["node"]].at_s, **msgspec.structs.asdict(samples[body["node"]].vms[body["id"]]),
        )
        for body in bodies
        if body["node"] in samples and body["id"] in samples[body["node"]].vms
    ]  # fmt: skip
    return UsageOfVms(items)


router = Router("/vm-usage", route_handlers=[show_vm_usage], tags=["vms"], opt=authorization.in_project())
