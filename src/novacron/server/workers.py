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
from novacron.server.relay import Relay
from novacron.server.settings import ServerSettings
from novacron.store.database import Database
from novacron.telemetry import logs, traces

log = logs.get(__name__)

SETTINGS = "NOVACRON_WORKER"
"""The variable in which a worker gets its settings."""
BACKOFF_S, BACKOFF_S_MAX, STEADY_S = 0.5, 30.0, 60.0
END_S_MAX = 15.0


async def keep(settings: ServerSettings, stop: asyncio.Event) -> None:
    """Run one worker, and another when it has ended, until ``stop``."""
    pause_s = BACKOFF_S
    while not stop.is_set():
        started = time.monotonic()
        # In the environment, which other users can't read, for the database's URL may hold a password.
        environment = {**os.environ, SETTINGS: msgspec.json.encode(settings, enc_hook=str).decode()}
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "novacron.server.workers", env=environment)
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
        certificate = (settings.state_dir / "server.crt", settings.state_dir / "server.key")
        front = Front(settings, database, authority, relay, certificate)
        running = asyncio.create_task(front.run())
        waits = [asyncio.create_task(stop.wait()), asyncio.create_task(relay.gone.wait())]
        await asyncio.wait({running, *waits}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            await front.leave()
            await asyncio.wait({running}, timeout=END_S_MAX)
        for task in (running, *waits):
            task.cancel()
        await asyncio.gather(running, *waits, return_exceptions=True)
    finally:
        await relay.close()
        await database.close()


def main() -> None:
    import uvloop

    settings = msgspec.json.decode(
        os.environ.pop(SETTINGS), type=ServerSettings, dec_hook=lambda type, text: type(text)
    )
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
