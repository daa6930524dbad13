"""Processes that answer people beside the server's own: started, started again, and ended with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time

import msgspec

from novacron import pki
from novacron.model.errors import NovaError
from novacron.server.http import Front
from novacron.server.keys import KeyFollower
from novacron.server.relay import Relay
from novacron.server.settings import ServerSettings
from novacron.store.database import Database
from novacron.supervise import end_all, supervise
from novacron.telemetry import logs, traces

log = logs.get(__name__)

SECRET_VARIABLES = ("NOVACRON_DATABASE_URL", "NOVACRON_REDIS_URL", "NOVACRON_JOIN_TOKEN", "NOVACRON_TOKEN")
"""What a worker does not inherit: it gets its settings, which may hold passwords, through its standard input."""
BACKOFF_S, BACKOFF_S_MAX, STEADY_S = 0.5, 30.0, 60.0
END_S_MAX = 15.0


async def keep(settings: ServerSettings, stop: asyncio.Event) -> None:
    """Run one worker, and another when it has ended, until ``stop``."""
    pause_s = BACKOFF_S
    while not stop.is_set():
        started = time.monotonic()
        process = await _start(settings)
        ended, stopped = asyncio.create_task(process.wait()), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if not ended.done():
                await _end(process, settings.leave_s)
        if stop.is_set():
            return
        pause_s = BACKOFF_S if time.monotonic() - started > STEADY_S else min(pause_s * 2, BACKOFF_S_MAX)
        log.warning("a worker has ended", code=process.returncode, again_s=pause_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause_s)


async def _start(settings: ServerSettings) -> asyncio.subprocess.Process:
    environment = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}
    command = (sys.executable, "-m", "novacron.server.workers")
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdin=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has ended already, which its keeper sees
        process.stdin.write(msgspec.json.encode(settings, enc_hook=str))
        await process.stdin.drain()
    process.stdin.close()
    return process


async def _end(process: asyncio.subprocess.Process, leave_s: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), leave_s + END_S_MAX)
        except TimeoutError:
            process.kill()
            await process.wait()


async def work(settings: ServerSettings) -> None:
    """Answer people until told to end, or until the server has ended."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    relay = await Relay.open(settings.relay)
    authority = pki.Authority.open(settings.state_dir)
    database = await Database.open(settings.database_url, settings.pool)
    try:
        keys = await KeyFollower.open(database, settings.state_dir, authority)
        front = Front(settings, database, authority, keys, relay)
        running = asyncio.create_task(front.run())
        following = asyncio.create_task(supervise("keys", keys.follow))
        waits = [asyncio.create_task(stop.wait()), asyncio.create_task(relay.gone.wait())]
        await asyncio.wait({running, *waits}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            if relay.gone.is_set():  # the server was killed: the one that follows it needs the port
                front.stop()
            else:
                await front.leave()
            await asyncio.wait({running}, timeout=END_S_MAX)
        await end_all((running, following, *waits))
    finally:
        await relay.close()
        await database.close()


def main() -> None:
    import uvloop

    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=ServerSettings, dec_hook=lambda type, text: type(text))
    logs.set_up("worker", os.environ.get("NOVACRON_LOG_LEVEL", "info"))
    traces.set_up("server", f"{settings.public_host}/{os.getpid()}")
    try:
        uvloop.run(work(settings))
    except (NovaError, OSError) as error:
        log.error("a worker can't begin", error=str(error))
        sys.exit(1)
    finally:
        traces.close()


if __name__ == "__main__":
    main()
