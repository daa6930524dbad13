"""Consoles and ports of VMs: tickets, the WebSocket that they open (binary messages), console logs, screenshots."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Annotated, Any

import msgspec
from litestar import Response, WebSocket, get, post, websocket
from litestar.exceptions import WebSocketDisconnect
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import Meta

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, ConsoleStream, Services, services
from novacron.api.access.live_calls import LiveCall
from novacron.api.edge import parameters, replies
from novacron.api.edge.slots import Full, SlotLimits, Slots
from novacron.api.read_model.principals import Caller
from novacron.model import limits
from novacron.model.access import Access, Right
from novacron.model.console import ConsoleKind, PortTicket, SerialNumber, Ticket
from novacron.model.errors import Forbidden, IllegalState, NovaError, Unauthenticated
from novacron.model.vm import Display
from novacron.store import tickets
from novacron.supervise import end_all
from novacron.wire.questions import ReadConsoleLog, TakeScreenshot

INPUT_BYTES_MAX = 64 * 1024
CLOSE_ENDED, CLOSE_REFUSED = 4401, 4409
PARAMETERS = frozenset({"ticket"})
PROTOCOL = "binary"
"""The subprotocol that VNC clients in browsers request."""
CONSOLES = Slots(SlotLimits(100_000, limits.CONSOLES_PER_PROJECT_MAX, 0))
"""Of each project on each node, as far as they come through this process."""
NO_ADDRESS = ""
OCTETS = "application/octet-stream"
"""A guest prints in any encoding."""

Tail = Annotated[
    int,
    QueryParameter(
        name="bytes", ge=1, le=limits.CONSOLE_LOG_TAIL_BYTES_MAX, description="bytes to return at most, from the end"
    ),
]


class OpenConsole(msgspec.Struct, forbid_unknown_fields=True):
    """Which console: a serial port, or the display."""

    kind: ConsoleKind = ConsoleKind.SERIAL
    serial: SerialNumber = 0
    """Number of the serial port: 0 is the first one, others are those of ``serial_ports``."""


@post(
    "/{ref:str}/actions/open-console",
    summary="Get a ticket that opens one WebSocket to a console, within a minute",
    status_code=201,
)
async def open_console(request: ApiRequest, ref: FromPath[str], data: JSONBody[OpenConsole | None] = None) -> Ticket:
    id, options = await authorization.resolve(request, "vm", ref), data or OpenConsole()
    async with replies.change(request) as connection:
        holder = tickets.Holder(request.user.name, request.user.id)
        return await tickets.create(connection, id, options.kind, options.serial, holder)


class OpenPort(msgspec.Struct, forbid_unknown_fields=True):
    """Which TCP port of the VM."""

    port: Annotated[int, Meta(ge=1, le=65535)] = 22


@post(
    "/{ref:str}/actions/open-port",
    summary="Get a ticket that opens one connection to a TCP port of the VM, within a minute",
    status_code=201,
)
async def open_port(request: ApiRequest, ref: FromPath[str], data: JSONBody[OpenPort | None] = None) -> PortTicket:
    id, port = await authorization.resolve(request, "vm", ref), (data or OpenPort()).port
    async with replies.change(request) as connection:
        return await tickets.create_for_port(connection, id, port, tickets.Holder(request.user.name, request.user.id))


def _place(request: ApiRequest, ref: str) -> tuple[str, str]:
    """Return the node and the id of a VM. Raises NotFound, Forbidden, IllegalState."""
    entry = authorization.seen(request, "vm", replies.check_ref("vm", ref))
    if entry.body["node"] is None:
        raise IllegalState(f"VM {ref} has not been placed on a node")
    return entry.body["node"], entry.body["id"]


@get(
    "/{ref:str}/console-log",
    summary="Show the end of the guest's serial console log",
    media_type=OCTETS,
    opt=authorization.in_project(Right.CONSOLE),
)
async def console_log(request: ApiRequest, ref: FromPath[str], tail: Tail = 64 * 1024) -> Response[bytes]:
    node, id = _place(request, ref)
    return Response(await services(request).agents.ask(node, ReadConsoleLog(id, tail)), media_type=OCTETS)


@get(
    "/{ref:str}/screenshot",
    summary="Take a screenshot of the display, as PNG",
    media_type="image/png",
    opt=authorization.in_project(Right.CONSOLE),
)
async def screenshot(request: ApiRequest, ref: FromPath[str]) -> Response[bytes]:
    node, id = _place(request, ref)
    vm = services(request).cache.get("vm", id)
    if vm is not None and vm.body["spec"].get("display") == Display.NONE:
        raise IllegalState(f"VM {ref} has no display", hint=f"novacron vm console {ref}")
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    image = await services(request).agents.ask(node, TakeScreenshot(id))
    return Response(image, media_type="image/png", headers=headers)


@websocket("/api/v1/console", exclude_from_auth=True)
async def console(socket: WebSocket[Caller, str, Any], ticket: FromQuery[str] = "") -> None:
    """Carry bytes between a console and the holder of a ticket for it."""
    asked = socket.headers.get("sec-websocket-protocol", "")
    await socket.accept(subprotocols=PROTOCOL if PROTOCOL in asked.split(",") else None)
    code, reason = CLOSE_REFUSED, ""
    try:
        parameters.check(socket.query_params, PARAMETERS)
        async with services(socket).database.transaction() as connection:
            admitted = await tickets.use(connection, ticket)
        caller, project = _holder(services(socket), admitted)
        with CONSOLES.taken_for(f"{project} on {admitted.node}", NO_ADDRESS):
            code, reason = await _serve(socket, admitted, caller, project)
    except NovaError as error:
        reason = str(error)
    except Full:
        reason = f"project {project} has {limits.CONSOLES_PER_PROJECT_MAX} consoles open on node {admitted.node}"
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await socket.close(code=code, reason=reason[:100])


async def _serve(
    socket: WebSocket[Caller, str, Any], admitted: tickets.Admitted, caller: Caller, project: str
) -> tuple[int, str]:
    """Carry bytes until one side ends, or the caller's right; return the code and the reason to close with."""
    context = services(socket)
    channel = await context.agents.open_console(admitted.node, admitted.vm, admitted.line, admitted.port)
    call: LiveCall | None = None
    try:
        async with asyncio.timeout(None) as limit:
            with context.live.watched(caller, limit, needs=_needs(project)) as call:
                await _carry(socket, channel, has_end=bool(admitted.port))
    except TimeoutError:
        return CLOSE_ENDED, "" if call is None or call.ended is None else str(call.ended)
    return 1000, channel.reason or "closed"


def _needs(project: str) -> Access:
    """Return the rights that a console takes for as long as it is open."""
    return Access(projects={project: frozenset({Right.WRITE})})


def _holder(context: Services, admitted: tickets.Admitted) -> tuple[Caller, str]:
    """Return who holds a ticket, and the VM's project.

    Raises Unauthenticated, NotFound, Forbidden.
    """
    caller, vm = context.cache.callers.by_id(admitted.token), context.cache.get("vm", admitted.vm)
    if caller is None or caller.expires_at_s <= time.time():
        raise Unauthenticated("the token or session that asked for the ticket has ended", field="ticket")
    if vm is None:
        raise authorization.no_such("vm", admitted.vm)
    project = str(vm.body["project"])
    if not caller.access.covers(_needs(project)):
        raise Forbidden(f"{caller.name} may no longer write in project {project}", field="ticket")
    return caller, project


async def _carry(socket: WebSocket[Caller, str, Any], channel: ConsoleStream, *, has_end: bool) -> None:
    """Carry bytes both ways until one side ends. ``has_end``: an empty message says that no more comes."""

    async def outwards() -> None:
        while (data := await channel.read()) is not None:
            await socket.send_bytes(data)

    async def inwards() -> None:
        while True:
            data = await socket.receive_bytes()
            if not data and has_end:
                await channel.write(b"")
            for at in range(0, len(data), INPUT_BYTES_MAX):
                await channel.write(data[at : at + INPUT_BYTES_MAX])

    tasks = [asyncio.create_task(outwards()), asyncio.create_task(inwards())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end_all(tasks)
        await channel.close()
