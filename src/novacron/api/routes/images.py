"""Routes for images: ``/api/v1/images``, as the nodes report them."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Router, delete, get, patch, post
from litestar.params import FromPath, FromQuery, JSONBody

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import lists, replies
from novacron.api.edge.metadata import Changes
from novacron.api.read_model.catalogues import CatalogueListing
from novacron.api.read_model.indexes import Entry
from novacron.api.read_model.paging import Page
from novacron.model.access import Right
from novacron.model.errors import Conflict, InvalidInput, NotFound
from novacron.model.event import Image, ImageCopy
from novacron.model.metadata import FIELDS as METADATA
from novacron.model.metadata import MetadataChanges, wanted_tags
from novacron.model.node import NodeName
from novacron.model.vm import BLANK_IMAGE, BOOT_FILE, ISO
from novacron.store import events, imports, metadata, vms
from novacron.wire.questions import RemoveImage


def merge(nodes: dict[str, Entry], owners: dict[str, Entry], described: dict[str, Entry] | None = None) -> list[Image]:
    """Return the images that nodes hold, by name; the same name with another digest is another image."""
    by_digest: dict[tuple[str, str], dict[str, Any]] = {}
    for name in sorted(nodes):
        inventory = nodes[name].body["status"]["inventory"]
        for image in inventory["images"] if inventory else ():
            owner = owners.get(image["name"])
            fields = {**image, "nodes": [], "project": None if owner is None else owner.body["project"]}
            fields["encryption_key"] = "" if owner is None else owner.body["encryption_key"]
            fields |= _written(described, image["name"])
            merged = by_digest.setdefault((image["name"], image["digest"]), fields)
            merged["nodes"].append(name)
    return [msgspec.convert(by_digest[key], Image) for key in sorted(by_digest)]


def _written(described: dict[str, Entry] | None, name: str) -> dict[str, Any]:
    """Return what people wrote about an image."""
    written = None if described is None else described.get(name)
    return {} if written is None else {field: value for field in METADATA if (value := written.body[field])}


def visible(request: ApiRequest) -> list[Image]:
    """Return the images that the caller may see."""
    cache, access = services(request).cache, request.user.access
    return [
        image
        for image in merge(cache.all("node"), cache.all("image-owner"), cache.all("image-metadata"))
        if image.project is None or access.sees(image.project)
    ]


def disks_mib(request: ApiRequest) -> dict[str, int]:
    """Return the size of the disk that VMs of each image have, 0 for none."""
    cache = services(request).cache

    def sizes() -> dict[str, int]:
        sizes_mib: dict[str, int] = {}
        for entry in cache.all("node").values():
            for image in (entry.body["status"]["inventory"] or {}).get("images", ()):
                size_mib = -(-image.get("disk_bytes", 0) >> 20)
                sizes_mib[image["name"]] = max(sizes_mib.get(image["name"], 0), size_mib)
        return sizes_mib

    return cache.derived("node", sizes)


def _kinds(request: ApiRequest) -> dict[str, str]:
    """Return the kind of each image."""
    cache = services(request).cache

    def kinds() -> dict[str, str]:
        inventories = [entry.body["status"]["inventory"] or {} for entry in cache.all("node").values()]
        return {image["name"]: image["kind"] for inventory in inventories for image in inventory.get("images", ())}

    return cache.derived("node", kinds)


def check_held(request: ApiRequest, name: str) -> None:
    """Raise InvalidInput when no node holds an image of this name that the caller may see, or it is no VM's disk."""
    owner = services(request).cache.get("image-owner", name)
    hidden = owner is not None and not request.user.access.sees(owner.body["project"])
    if hidden or name not in disks_mib(request):
        raise InvalidInput(f"no node holds an image named {name!r}", field="image", hint="see: novacron image list")
    if (kind := _kinds(request).get(name)) in (ISO, BOOT_FILE):
        option = "--cd" if kind == ISO else "--kernel or --initrd"
        raise InvalidInput(f"{name} is an image of kind {kind}: VMs can't have a disk made from it", field="image",
                           hint=f"use it with {option}")  # fmt: skip


@get("/", summary="List images and the nodes that hold them", opt=authorization.SELF)
async def list_images(request: ApiRequest, tag: lists.Tag = None) -> Page[Image]:
    tags = set(wanted_tags(tag))
    items = [image for image in visible(request) if tags.issubset(image.tags)]
    return Page[Image](items, None, services(request).cache.revision)


@get("/", summary="List the images that the server's catalogues have", opt=authorization.SELF)
async def list_catalogue_images(request: ApiRequest) -> CatalogueListing:
    return await services(request).catalogues.listed()


@get("/{name:str}", summary="Show an image", opt=authorization.SELF)
async def show_image(request: ApiRequest, name: FromPath[str]) -> Image:
    return named(request, name)


def named(request: ApiRequest, name: str) -> Image:
    """Return an image that the caller may see. Raises NotFound."""
    for image in visible(request):
        if image.name == name:
            return image
    raise NotFound(f"there is no image {name!r}", hint="see: novacron image list")


@patch(
    "/{name:str}",
    summary="Change an image's display name, description and tags",
    status_code=200,
    opt=authorization.SELF,
)
async def configure_image(request: ApiRequest, name: FromPath[str], data: JSONBody[MetadataChanges]) -> Image:
    image, changes = named(request, replies.check_ref("image", name)), Changes.of(data)
    authorization.check(request, image.project, Right.OPERATE if image.project is None else Right.WRITE)
    async with replies.change(request, image) as connection:
        await metadata.describe_image(connection, name, changes.metadata, request.user.name)
    return named(request, name)


@delete("/{name:str}", summary="Remove an image from all nodes, or from one", status_code=204, opt=authorization.SELF)
async def delete_image(request: ApiRequest, name: FromPath[str], node: FromQuery[str | None] = None) -> None:
    name, context = replies.check_ref("image", name), services(request)
    if name == BLANK_IMAGE:
        raise Conflict(f"image {name} is built in on every node: VMs without another image start with it")
    images = [image for image in visible(request) if image.name == name]
    for image in images:
        authorization.check(request, image.project, Right.OPERATE if image.project is None else Right.WRITE)
    holders = [(holder, image.digest) for image in images for holder in image.nodes if node in (None, holder)]
    if not holders:
        raise NotFound(f"there is no image {name!r}" + (f" on {node}" if node else ""), hint="see: novacron image list")
    async with context.database.connection() as connection:
        using = await vms.made_of(connection, name, node)
    if using:
        raise Conflict(f"VMs were created from image {name}: {', '.join(using)}", hint="delete them first")
    for holder, digest in holders:
        await context.agents.ask(holder, RemoveImage(name, digest))
        async with replies.change(request) as connection:
            await events.record(
                connection, events.NewEvent("node", holder, holder, "ImageRemoved", f"image {name}", request.user.name)
            )
    if node is None:
        async with replies.change(request) as connection:
            await imports.disown(connection, name)
            await metadata.forget_image(connection, name)


class CopyImage(msgspec.Struct, forbid_unknown_fields=True):
    """The node to copy an image to, and its source: by default the nearest node that holds it."""

    target: NodeName
    source: NodeName | None = None


@post("/{name:str}/actions/copy", summary="Copy an image to another node; an event reports the result", status_code=202)
async def copy_image(request: ApiRequest, name: FromPath[str], data: JSONBody[CopyImage]) -> ImageCopy:
    async with replies.change(request):
        pass
    agents = services(request).agents
    return await agents.copy_image(replies.check_ref("image", name), data.source, data.target, request.user.name)


router = Router(
    "/images",
    route_handlers=[list_images, show_image, copy_image, configure_image, delete_image],
    tags=["images"],
    opt=authorization.in_fleet(),
)
catalogue_router = Router(
    "/catalogue-images", route_handlers=[list_catalogue_images], tags=["images"], opt=authorization.SELF
)
