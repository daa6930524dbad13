"""Routes for volumes and the pools that they are in: ``/api/v1/volumes``, ``/api/v1/pools``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from litestar import Response, Router, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import UNSET, UnsetType

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import lists, metadata, replies
from novacron.api.read_model.indexes import Object
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.api.routes import images, project_moves
from novacron.model import limits
from novacron.model.devices import BootOrder, DiskBus
from novacron.model.metadata import MetadataChanges
from novacron.model.names import Name
from novacron.model.node import NodeName
from novacron.model.vm import BytesPerS, DiskMib, Iops, check_name
from novacron.model.volume import PoolKind, Volume
from novacron.store import volumes
from novacron.store.database import Connection

Wait = Annotated[int, QueryParameter(ge=0, le=limits.LONG_POLL_S_MAX)]


class CreateVolume(msgspec.Struct, forbid_unknown_fields=True):
    """A new volume, empty or a copy of an image's disk. ``node``: by default the one with most room in the pool."""

    name: Name
    size_mib: DiskMib
    pool: Name = "local"
    node: NodeName | None = None
    image: Name | None = None
    iops: Iops | None = None
    bytes_per_s: BytesPerS | None = None


class ConfigureVolume(MetadataChanges):
    """What to change; what is left out stays. It only grows, also while attached; a limit of null means none."""

    name: Name | UnsetType = UNSET
    size_mib: DiskMib | UnsetType = UNSET
    iops: Iops | UnsetType | None = UNSET
    bytes_per_s: BytesPerS | UnsetType | None = UNSET


class AttachVolume(msgspec.Struct, forbid_unknown_fields=True):
    """The VM to attach it to, and how. Firmware tries the lowest ``boot_order`` first; the VM's own disk has 1."""

    vm: str
    read_only: bool = False
    boot_order: BootOrder | None = None
    bus: DiskBus = DiskBus.SCSI
    """Others than ``scsi`` only while the VM is off."""


class PoolOnNode(msgspec.Struct):
    """A pool as one node sees it, with the space allocated there. Sizes in bytes."""

    name: str
    kind: PoolKind
    node: str
    bytes_total: int
    bytes_free: int
    volumes: int
    promised_bytes: int
    used_bytes: int


@get("/", summary="List storage pools of each node")
async def list_pools(request: ApiRequest) -> Page[PoolOnNode]:
    cache = services(request).cache
    every = [entry.body for entry in cache.all("volume").values()]
    items = []
    for node in cache.all("node").values():
        for pool in (node.body["status"]["inventory"] or {}).get("pools", ()):
            items.append(_pool_on_node(node.body["name"], pool, every))
    return Page[PoolOnNode](sorted(items, key=lambda pool: (pool.name, pool.node)), None, cache.revision)


def _pool_on_node(node: str, pool: Object, volumes_of_all: Sequence[Object]) -> PoolOnNode:
    inside = [
        volume for volume in volumes_of_all
        if volume["pool"] == pool["name"] and (pool["kind"] == PoolKind.SHARED or volume["node"] == node)
    ]  # fmt: skip
    return PoolOnNode(
        pool["name"],
        PoolKind(pool["kind"]),
        node,
        pool["bytes_total"],
        pool["bytes_free"],
        len(inside),
        sum(volume["size_mib"] << 20 for volume in inside),
        sum(volume["used_bytes"] for volume in inside),
    )


@get("/", summary="List volumes by name")
async def list_volumes(
    request: ApiRequest, paging: NamedDependency[Paging], vm: FromQuery[str | None] = None
) -> Response[Page[Volume]]:
    return lists.answer(request, paging, Query("volume", lists.of_vm(vm)))


@get("/{ref:str}", summary="Show a volume by id or name")
async def show_volume(
    request: ApiRequest, ref: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: Wait = 30
) -> Response[Volume]:
    return await replies.single(request, "volume", ref, newer_than, timeout_s)


@post("/", summary="Create a volume", status_code=201)
async def create_volume(request: ApiRequest, data: JSONBody[CreateVolume]) -> Response[Volume]:
    check_name(data.name)
    if data.image is not None:
        images.check_held(request, data.image)
    project, limited = authorization.project_for_new(request), {"iops": data.iops, "bytes_per_s": data.bytes_per_s}

    async def work(connection: Connection) -> Volume:
        new = volumes.NewVolume(data.name, data.pool, data.size_mib, data.node, data.image, **limited)
        return await volumes.create(connection, project, new, request.user.name)

    return await replies.write(request, work, status=201, location=lambda volume: f"/api/v1/volumes/{volume.id}")


@patch("/{ref:str}", summary="Change a volume's name, size, I/O limits, description or tags", status_code=200)
async def configure_volume(
    request: ApiRequest, ref: FromPath[str], data: JSONBody[ConfigureVolume]
) -> Response[Volume]:
    id = await authorization.resolve(request, "volume", ref)
    changes, revision, actor = metadata.Changes.of(data), replies.if_match(request), request.user.name
    name = ref if data.name is UNSET else check_name(data.name)

    async def work(connection: Connection) -> Volume:
        async def configure() -> Volume:
            return await volumes.configure(connection, id, changes.own, actor)

        target, has_own = metadata.ObjectRef("volume", id, name), configure if changes.own else None
        return await metadata.apply(
            connection, target, Volume, metadata.MetadataChange(changes.metadata, actor, revision), has_own
        )

    return await replies.write(request, work)


@delete("/{ref:str}", summary="Delete a volume and its data", status_code=202)
async def delete_volume(request: ApiRequest, ref: FromPath[str]) -> Response[Volume]:
    id = await authorization.resolve(request, "volume", ref)

    async def work(connection: Connection) -> Volume:
        return await volumes.delete(connection, id, request.user.name)

    return await replies.write(request, work, status=202)


@post("/{ref:str}/actions/attach", summary="Attach a volume to a VM, immediately if it runs", status_code=202)
async def attach_volume(request: ApiRequest, ref: FromPath[str], data: JSONBody[AttachVolume]) -> Response[Volume]:
    id, vm = (
        await authorization.resolve(request, "volume", ref),
        await authorization.resolve(request, "vm", data.vm, "vm"),
    )

    async def work(connection: Connection) -> Volume:
        how = volumes.Attachment(data.read_only, data.boot_order, data.bus)
        return await volumes.attach(connection, id, vm, how, request.user.name)

    return await replies.write(request, work, status=202)


@post("/{ref:str}/actions/detach", summary="Detach a volume from its VM, immediately if it runs", status_code=202)
async def detach_volume(request: ApiRequest, ref: FromPath[str]) -> Response[Volume]:
    id = await authorization.resolve(request, "volume", ref)

    async def work(connection: Connection) -> Volume:
        return await volumes.detach(connection, id, request.user.name)

    return await replies.write(request, work, status=202)


router = Router(
    "/volumes",
    route_handlers=[
        list_volumes, show_volume, create_volume, configure_volume, delete_volume, attach_volume, detach_volume,
        project_moves.move_volume,
    ],
    tags=["volumes"],
    opt=authorization.in_project(),
)  # fmt: skip
pools = Router("/pools", route_handlers=[list_pools], tags=["volumes"], opt=authorization.in_fleet())
