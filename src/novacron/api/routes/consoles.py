"""Consoles of VMs: tickets, the WebSocket that they open (binary messages), console logs and screenshots."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated, Any

import msgspec
from litestar import Response, WebSocket, get, post, websocket
from litestar.exceptions import WebSocketDisconnect
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import replies
from novacron.api.read_model.principals import Caller
from novacron.model import limits
from novacron.model.console import ConsoleKind, Ticket
from novacron.model.errors import IllegalState, NovaError
from novacron.model.vm import Display
from novacron.store import tickets
from novacron.wire.questions import ReadConsoleLog, TakeScreenshot

INPUT_BYTES_MAX = 64 * 1024
CLOSE_REFUSED = 4409
PROTOCOL = "binary"
"""The subprotocol that VNC clients in browsers request."""
OCTETS = "application/octet-stream"
"""A guest prints in any encoding."""

Tail = Annotated[
    int, QueryParameter(name="bytes", ge=1, le=limits.CONSOLE_LOG_TAIL_BYTES_MAX, description="at most, from the end")
]


class OpenConsole(msgspec.Struct, forbid_unknown_fields=True):
    """Which console: the serial line, or the display."""

    kind: ConsoleKind = ConsoleKind.SERIAL


@post(
    "/{ref:str}/actions/open-console",
    summary="Get a ticket that opens one WebSocket to a console, within a minute",
    status_code=201,
)
async def open_console(request: ApiRequest, ref: FromPath[str], data: JSONBody[OpenConsole | None] = None) -> Ticket:
    id, options = await authorization.resolve(request, "vm", ref), data or OpenConsole()
    async with replies.change(request) as connection:
        return await tickets.create(connection, id, options.kind, request.user.name)


def _place(request: ApiRequest, ref: str) -> tuple[str, str]:
    """Return the node and the id of a VM. Raises NotFound, Forbidden, IllegalState."""
    entry = authorization.seen(request, "vm", replies.check_ref("vm", ref))
    if entry.body["node"] is None:
        raise IllegalState(f"VM {ref} is on no node")
    return entry.body["node"], entry.body["id"]


@get(
    "/{ref:str}/console-log",
    summary="Show the end of the guest's serial console log",
    media_type=OCTETS,
)
async def console_log(request: ApiRequest, ref: FromPath[str], tail: Tail = 64 * 1024) -> Response[bytes]:
    node, id = _place(request, ref)
    return Response(await services(request).agents.ask(node, ReadConsoleLog(id, tail)), media_type=OCTETS)


@get("/{ref:str}/screenshot", summary="Take a screenshot of the display, as PNG", media_type="image/png")
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
    context = services(socket)
    asked = socket.headers.get("sec-websocket-protocol", "")
    await socket.accept(subprotocols=PROTOCOL if PROTOCOL in asked.split(",") else None)

    try:
        async with context.database.transaction() as connection:
            admitted = await tickets.use(connection, ticket)
        channel = await context.agents.open_console(admitted.node, admitted.vm, admitted.kind)
    except NovaError as error:
        await socket.close(code=CLOSE_REFUSED, reason=str(error)[:100])
        return

    async def outwards() -> None:
        while (data := await channel.read()) is not None:
            await socket.send_bytes(data)

    async def inwards() -> None:
        while True:
            data = await socket.receive_bytes()
            for at in range(0, len(data), INPUT_BYTES_MAX):
                await channel.write(data[at : at + INPUT_BYTES_MAX])

    tasks = [asyncio.create_task(outwards()), asyncio.create_task(inwards())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await channel.close()
        if not any(isinstance(result, WebSocketDisconnect) for result in results):
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                await socket.close(code=1000, reason=(channel.reason or "closed")[:100])
