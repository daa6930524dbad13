"""The serial console of a VM as a WebSocket: binary messages, bytes as the guest sends and takes them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from litestar import WebSocket, websocket
from litestar.exceptions import WebSocketDisconnect

from novacron.api.context import Caller, services
from novacron.model.errors import NovaError

INPUT_BYTES_MAX = 64 * 1024
CLOSE_REFUSED = 4409


@websocket("/api/v1/vms/{ref:str}/console")
async def console(socket: WebSocket[Caller, str, Any], ref: str) -> None:
    context = services(socket)
    await socket.accept()
    entry = context.cache.get("vm", ref)
    if entry is None or entry.body["node"] is None:
        await socket.close(code=CLOSE_REFUSED, reason=f"there is no running VM {ref!r}"[:100])
        return
    try:
        channel = await context.agents.open_console(entry.body["node"], entry.body["id"])
    except NovaError as error:
        await socket.close(code=CLOSE_REFUSED, reason=str(error)[:100])
        return

    async def outwards() -> None:
        while (data := await channel.read()) is not None:
            await socket.send_bytes(data)

    async def inwards() -> None:
        while True:
            data = await socket.receive_bytes()
            await channel.write(data[:INPUT_BYTES_MAX])

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
