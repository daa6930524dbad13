"""Routes for images: ``/api/v1/images``, as the nodes report them."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Router, delete, get, post

from novacron.api import reply
from novacron.api.cache import Entry
from novacron.api.context import ApiRequest, services
from novacron.model.errors import Conflict, NotFound
from novacron.model.event import Image, ImageCopy
from novacron.model.node import NodeName
from novacron.store import events, vms


class ImageList(msgspec.Struct):
    items: list[Image]
    next: str | None
    revision: int


def merge(nodes: dict[str, Entry]) -> list[Image]:
    """Return the images that nodes hold, by name; the same name with another digest is another image."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name in sorted(nodes):
        inventory = nodes[name].body["status"]["inventory"]
        for image in inventory["images"] if inventory else ():
            merged = found.setdefault((image["name"], image["digest"]), {**image, "nodes": []})
            merged["nodes"].append(name)
    return [msgspec.convert(found[key], Image) for key in sorted(found)]


@get("/", summary="List images and the nodes that hold them")
async def list_images(request: ApiRequest) -> ImageList:
    cache = services(request).cache
    return ImageList(merge(cache.all("node")), None, cache.revision)


@get("/{name:str}", summary="Show an image")
async def show_image(request: ApiRequest, name: str) -> Image:
    for image in merge(services(request).cache.all("node")):
        if image.name == name:
            return image
    raise NotFound(f"there is no image {name!r}", hint="see: novacron image list")


@delete("/{name:str}", summary="Remove an image from all nodes, or from one", status_code=204)
async def delete_image(request: ApiRequest, name: str, node: str | None = None) -> None:
    name, context = reply.check_ref("image", name), services(request)
    found = [image for image in merge(context.cache.all("node")) if image.name == name]
    holders = [(holder, image.digest) for image in found for holder in image.nodes if node in (None, holder)]
    if not holders:
        raise NotFound(f"there is no image {name!r}" + (f" on {node}" if node else ""), hint="see: novacron image list")
    async with context.database.connection() as connection:
        using = await vms.made_of(connection, name, node)
    if using:
        raise Conflict(f"VMs are made of image {name}: {', '.join(using)}", hint="delete them first")
    for holder, digest in holders:
        await context.agents.remove_image(holder, name, digest)
        async with context.database.transaction() as connection:
            await events.record(connection, "node", holder, holder, "ImageRemoved", f"image {name}", request.user.name)


class CopyImage(msgspec.Struct, forbid_unknown_fields=True):
    """Where an image is to go, and which node gives it: by default the nearest that has it."""

    target: NodeName
    source: NodeName | None = None


@post("/{name:str}/actions/copy", summary="Copy an image to another node; events say how that ended", status_code=202)
async def copy_image(request: ApiRequest, name: str, data: CopyImage) -> ImageCopy:
    agents = services(request).agents
    return await agents.copy_image(reply.check_ref("image", name), data.source, data.target, request.user.name)


router = Router("/images", route_handlers=[list_images, show_image, copy_image, delete_image], tags=["images"])
