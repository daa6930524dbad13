"""Routes for imports of images: ``/api/v1/imports``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Response, Router, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import Meta

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import lists, replies
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.model import limits
from novacron.model.access import Right
from novacron.model.errors import InvalidInput
from novacron.model.image import (
    ImageFormat,
    Import,
    ImportPhase,
    ImportSpec,
    Sha256,
    SizeBytes,
    Source,
    check_path,
    check_url,
)
from novacron.model.names import Name
from novacron.model.node import NodeName
from novacron.model.vm import check_name
from novacron.store import imports
from novacron.store.database import Connection
from novacron.wire.questions import TakePiece

Wait = Annotated[int, QueryParameter(ge=0, le=limits.LONG_POLL_S_MAX)]
Offset = Annotated[
    int, QueryParameter(ge=0, le=limits.IMAGE_FILE_BYTES_MAX, description="where the piece starts, in bytes")
]


class ImportImage(msgspec.Struct, forbid_unknown_fields=True):
    """A disk that becomes an image. Just one of ``url``, ``path``, ``size_bytes`` and ``catalogue_image`` says where it
    comes from: fetched over HTTP, found below the node's directory for imports, uploaded in pieces, or fetched as a
    catalogue of the server's says."""

    name: Name
    url: str | None = None
    path: str | None = None
    size_bytes: SizeBytes | None = None
    catalogue_image: Name | None = None
    """Name or alias of an image in a catalogue, which also says its digest, size and format."""
    sha256: Sha256 | None = None
    format: ImageFormat | None = None
    description: Annotated[str, Meta(max_length=limits.IMAGE_FILE_DESCRIPTION_LENGTH_MAX)] = ""
    node: NodeName | None = None
    shared: bool | None = None
    """Every project may use the image, which needs a role in all projects; default: whether the caller has one and
    names no project."""


class UploadProgress(msgspec.Struct):
    """How much of an upload has arrived: the next piece begins here."""

    held_bytes: int


@get("/", summary="List imports, newest first")
async def list_imports(
    request: ApiRequest,
    paging: NamedDependency[Paging],
    phase: FromQuery[ImportPhase | None] = None,
) -> Response[Page[Import]]:
    return lists.answer(request, paging, Query("import", lists.where({"phase": phase}), newest_first=True))


@get("/{id:str}", summary="Show an import")
async def show_import(
    request: ApiRequest, id: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: Wait = 30
) -> Response[Import]:
    return await replies.single(request, "import", id, newer_than, timeout_s)


@post("/", summary="Import an image", status_code=201)
async def create_import(request: ApiRequest, data: JSONBody[ImportImage]) -> Response[Import]:
    check_name(data.name)
    sources = [field for field in ("url", "path", "size_bytes", "catalogue_image") if getattr(data, field) is not None]
    if len(sources) != 1:
        raise InvalidInput(
            "name the disk's source" if not sources else f"{' and '.join(sources)} are more than one source",
            field="url" if not sources else sources[1],
            hint="give exactly one of url, path, catalogue_image, or size_bytes (for an upload)",
        )
    shared = {"sha256": data.sha256, "format": data.format, "description": data.description}
    if data.catalogue_image is not None:
        spec = await _catalogued(request, data)
    elif data.url is not None:
        spec = ImportSpec(data.name, Source.URL, check_url(data.url), **shared)  # type: ignore[arg-type]  # by name
    elif data.path is not None:
        spec = ImportSpec(data.name, Source.PATH, check_path(data.path), **shared)  # type: ignore[arg-type]  # by name
    else:
        spec = ImportSpec(data.name, Source.UPLOAD, "", data.size_bytes or 0, **shared)  # type: ignore[arg-type]  # by name

    project = _project(request, data, spec.source)

    async def work(connection: Connection) -> Import:
        return await imports.create(connection, project, spec, data.node, request.user.name)

    return await replies.write(request, work, status=201, location=lambda import_: f"/api/v1/imports/{import_.id}")


async def _catalogued(request: ApiRequest, data: ImportImage) -> ImportSpec:
    """Return what a catalogue says of an image. Raises InvalidInput."""
    for field in ("sha256", "format"):
        if getattr(data, field) is not None:
            raise InvalidInput("the catalogue sets it", field=field, hint="leave it out")
    image = await services(request).catalogues.find(data.catalogue_image or "")
    return ImportSpec(
        data.name, Source.URL, check_url(image.url), image.size_bytes, image.sha256, image.format,
        data.description or image.description,
    )  # fmt: skip


def _project(request: ApiRequest, data: ImportImage, source: Source) -> str | None:
    """Return the project that an image is to belong to; None: all share it. Raises InvalidInput, Forbidden."""
    named = authorization.named_project(request) is not None
    if named and data.shared:
        raise InvalidInput("an image that all projects share belongs to none", field="shared", hint="leave project out")
    operates = request.user.access.allows(Right.OPERATE, None)
    shared_with_all = operates and not named if data.shared is None else data.shared
    if shared_with_all or source is Source.PATH:  # a path names a file of the host's
        authorization.check(request, None, Right.OPERATE)
    return None if shared_with_all else authorization.project_for_new(request)


@put(
    "/{id:str}/data",
    summary="Upload a piece of the file; the response says where the next one starts",
    status_code=200,
    request_max_body_size=limits.UPLOAD_PIECE_BYTES_MAX,
)
async def upload(request: ApiRequest, id: FromPath[str], offset: Offset) -> UploadProgress:
    id, context, piece = await _own(request, id), services(request), await request.body()
    if not piece:
        raise InvalidInput("the piece is empty", hint=f"send 1 to {limits.UPLOAD_PIECE_BYTES_MAX} bytes")
    async with context.database.connection() as connection:
        upload = await imports.expected(connection, id, offset, len(piece))
    return UploadProgress(await context.agents.ask(upload.node, TakePiece(id, offset, piece)))


async def _own(request: ApiRequest, id: str) -> str:
    """Return the import's id, if the caller may change it."""
    return await authorization.resolve(request, "import", replies.check_ref("import", id))


@delete("/{id:str}", summary="Abort an import and remove what was transferred", status_code=200)
async def abort_import(request: ApiRequest, id: FromPath[str]) -> Response[Import]:
    id = await _own(request, id)

    async def work(connection: Connection) -> Import:
        return await imports.abort(connection, id, request.user.name)

    return await replies.write(request, work)


router = Router(
    "/imports",
    route_handlers=[list_imports, show_import, create_import, upload, abort_import],
    tags=["images"],
    opt=authorization.in_project(),
)
