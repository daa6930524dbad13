"""The Unix sockets over which QEMU brings what it migrates, opened and removed beside the agent's loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterable

from novacron.agent.vm.directory import OUTGOING_SOCKET, VmDirectory


async def listen(home: VmDirectory, name: str) -> socket.socket:
    """Return a socket that listens under this name in a VM's directory. Raises OSError."""
    opening = asyncio.ensure_future(asyncio.to_thread(home.listen, name))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close)
        raise


def _close(opening: asyncio.Future[socket.socket]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


async def remove(home: VmDirectory, names: Iterable[str]) -> None:
    """Remove sockets from a VM's directory; those that are not there, too. Raises OSError."""

    def remove_all() -> None:
        for name in names:
            (home.path / name).unlink(missing_ok=True)

    await asyncio.to_thread(remove_all)


@contextlib.asynccontextmanager
async def listening(home: VmDirectory) -> AsyncIterator[socket.socket]:
    """Listen for one connection of QEMU's, which brings its memory. Raises OSError."""
    with await listen(home, OUTGOING_SOCKET) as server:
        server.setblocking(False)
        try:
            yield server
        finally:
            await remove(home, [OUTGOING_SOCKET])
