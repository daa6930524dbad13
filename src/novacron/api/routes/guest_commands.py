"""Programs and files in guests, through their guest agents."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import AsyncIterator
from typing import Annotated

from litestar import get, post, put
from litestar.params import FromPath, JSONBody, QueryParameter

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import replies
from novacron.api.edge.pieces import RECORDED, AskedPiece
from novacron.api.edge.slots import Full, SlotLimits, Slots
from novacron.model import limits
from novacron.model.access import Right
from novacron.model.errors import IllegalState, InvalidInput, TooManyRequests
from novacron.model.guest_command import FilePiece, FileWritten, GuestCommand, GuestPath, NewCommand, StartedCommand
from novacron.wire.questions import ReadGuestCommand, ReadGuestFile, StartGuestCommand, WriteGuestFile

WAIT_S_MAX = 20
"""Shorter than the time limit of a question to a node."""
PID = re.compile(r"[0-9]{1,12}\Z")
WORKING = Slots(SlotLimits(10_000, limits.GUEST_COMMANDS_PER_PROJECT_MAX, 0))
"""Of each project on each node: guests answer as slowly as they like."""
NO_ADDRESS = ""

Wait = Annotated[
    int,
    QueryParameter(ge=0, le=WAIT_S_MAX, description="respond when the program has ended, or after this many seconds"),
]
Path = Annotated[GuestPath, QueryParameter(description="absolute path of the file in the guest")]
Offset = Annotated[
    int, QueryParameter(ge=0, le=limits.GUEST_FILE_BYTES_MAX, description="where the piece starts, in bytes")
]


@contextlib.asynccontextmanager
async def _guest(request: ApiRequest, ref: str, *, recorded: AskedPiece | bool) -> AsyncIterator[tuple[str, str]]:
    """Give the node and the id of a VM; the audit log says that the caller was there, if ``recorded`` is true or
    a piece of a file of which it does not say so yet.

    Raises NotFound, Forbidden, IllegalState, TooManyRequests.
    """
    entry = authorization.seen(request, "vm", replies.check_ref("vm", ref))
    if entry.body["node"] is None:
        raise IllegalState(f"VM {ref} has not been placed on a node")
    piece = recorded if isinstance(recorded, AskedPiece) else None
    if recorded is True or (piece is not None and RECORDED.begins(*piece)):
        async with replies.change(request):
            pass
        if piece is not None:
            RECORDED.note(piece.key)
    node, project = str(entry.body["node"]), str(entry.body["project"])
    try:
        with WORKING.taken_for(f"{project} on {node}", NO_ADDRESS):
            yield node, str(entry.body["id"])
    except Full:
        raise TooManyRequests(
            f"project {project} is already waiting for {limits.GUEST_COMMANDS_PER_PROJECT_MAX} guests on node {node}",
            hint="try again when one of them has answered",
        ) from None


@post(
    "/{ref:str}/commands",
    summary="Start a program in the guest, through its guest agent",
    status_code=201,
    request_max_body_size=limits.GUEST_INPUT_BYTES_MAX * 4,
)
async def start_command(request: ApiRequest, ref: FromPath[str], data: JSONBody[NewCommand]) -> StartedCommand:
    key = f"{request.user.id} {request.headers.get('idempotency-key') or uuid.uuid4()}"
    async with _guest(request, ref, recorded=True) as (node, id):
        return StartedCommand(await services(request).agents.ask(node, StartGuestCommand(id, key, data)))


@get(
    "/{ref:str}/commands/{pid:str}",
    summary="Show whether a program in the guest has ended, and what it printed",
    opt=authorization.in_project(Right.WRITE),
)
async def show_command(request: ApiRequest, ref: FromPath[str], pid: FromPath[str], wait: Wait = 0) -> GuestCommand:
    async with _guest(request, ref, recorded=False) as (node, id):
        if not PID.match(pid):
            raise InvalidInput(f"{pid[:80]!r} is not a process id", field="pid")
        return await services(request).agents.ask(node, ReadGuestCommand(id, int(pid), wait))


@get(
    "/{ref:str}/file",
    summary="Read a piece of a file in the guest",
    opt=authorization.in_project(Right.WRITE),
)
async def read_guest_file(request: ApiRequest, ref: FromPath[str], path: Path, offset: Offset = 0) -> FilePiece:
    recorded = AskedPiece((request.user.id, "read", ref, path), first=offset == 0)
    async with _guest(request, ref, recorded=recorded) as (node, id):
        return await services(request).agents.ask(node, ReadGuestFile(id, path, offset, limits.GUEST_PIECE_BYTES_MAX))


@put(
    "/{ref:str}/file",
    summary="Write a piece of a file in the guest: the first replaces the file, later ones are appended",
    status_code=200,
    request_max_body_size=limits.GUEST_PIECE_BYTES_MAX,
)
async def write_guest_file(request: ApiRequest, ref: FromPath[str], path: Path, offset: Offset = 0) -> FileWritten:
    data = await request.body()
    recorded = AskedPiece((request.user.id, "write", ref, path), first=offset == 0)
    async with _guest(request, ref, recorded=recorded) as (node, id):
        return FileWritten(await services(request).agents.ask(node, WriteGuestFile(id, path, offset, data)))


ROUTES = [start_command, show_command, read_guest_file, write_guest_file]
