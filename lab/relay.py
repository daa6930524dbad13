"""A host's way to the server: loopback ports of a namespace, joined to the same ports of this machine.

``python -m lab.relay NETNS PORT...`` prints ``ready`` and runs until it is killed: that cuts the host off.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys

from lab.hosts import listen_within

CHUNK_BYTES = 64 * 1024


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # one end is gone: the other is closed below
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()


async def join(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Join a connection to a port of this machine until either end closes."""
    try:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        writer.close()
        return
    await asyncio.gather(_copy(reader, to_writer), _copy(to_reader, writer))


async def main(netns: str, ports: list[int]) -> None:
    servers = [
        await asyncio.start_server(functools.partial(join, port), sock=listen_within(netns, port)) for port in ports
    ]
    print("ready", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], [int(port) for port in sys.argv[2:]]))
