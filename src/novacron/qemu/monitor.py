"""QMP: commands to one QEMU and its events, each with a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from qemu.qmp import ExecuteError, QMPClient, QMPError

from novacron.telemetry import logs, traces
from novacron.telemetry.values import counter, histogram

log = logs.get(__name__)

COMMANDS = counter("novacron_qmp_commands_total")
DURATIONS = histogram("novacron_qmp_command_duration_seconds")
COMMAND_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 20.0
CONNECT_RETRY_S = 0.01


class MonitorFailed(Exception):
    """QEMU did not answer, or answered with an error: says which command, and what it said."""


class Monitor:
    """A connection to one QEMU's monitor. ``on_event`` gets each event's name and data."""

    def __init__(self, client: QMPClient, on_event: Callable[[str, dict[str, Any]], None]) -> None:
        self._client = client
        self._on_event = on_event
        self._handing = asyncio.Lock()
        self._pump = asyncio.create_task(self._events())

    @classmethod
    async def connect(
        cls, path: Path, on_event: Callable[[str, dict[str, Any]], None], alive: Callable[[], bool]
    ) -> Monitor:
        """Connect to the monitor at ``path``, waiting for QEMU to open it. Raises MonitorFailed."""
        deadline = asyncio.get_running_loop().time() + CONNECT_TIMEOUT_S
        pause_s = CONNECT_RETRY_S
        while True:
            client = QMPClient()
            try:
                await asyncio.wait_for(client.connect(str(path)), COMMAND_TIMEOUT_S)
                return cls(client, on_event)
            except (QMPError, OSError, TimeoutError) as error:
                with contextlib.suppress(Exception):
                    await client.disconnect()
                if not alive():
                    raise MonitorFailed(f"QEMU ended before its monitor answered at {path}") from error
                if asyncio.get_running_loop().time() > deadline:
                    raise MonitorFailed(f"QEMU's monitor at {path} does not answer: {error}") from error
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.2)

    async def execute(self, name: str, arguments: dict[str, Any] | None = None, *, out_of_band: bool = False) -> Any:  # noqa: ANN401 - differs by command
        """Run a QMP command and return its result. Raises MonitorFailed.

        ``out_of_band`` does not wait for QEMU's main loop, which in post-copy may wait for memory; few commands can.
        """
        if traces.recording():
            with traces.span(f"qmp {name}", kind=traces.SpanKind.CLIENT):
                return await self._execute(name, arguments, out_of_band=out_of_band)
        return await self._execute(name, arguments, out_of_band=out_of_band)

    async def _execute(self, name: str, arguments: dict[str, Any] | None, *, out_of_band: bool) -> Any:  # noqa: ANN401 - differs by command
        began, outcome = time.perf_counter(), "unanswered"
        try:
            result = await asyncio.wait_for(self._client.execute(name, arguments, oob=out_of_band), COMMAND_TIMEOUT_S)
            outcome = "done"
            log.debug("qmp", command=name)
            return result
        except ExecuteError as error:
            outcome = "refused"
            raise MonitorFailed(f"QEMU refused {name}: {error}") from error
        except (QMPError, OSError, TimeoutError) as error:
            raise MonitorFailed(f"QEMU did not answer {name}: {error or type(error).__name__}") from error
        finally:
            COMMANDS.add(name, outcome)
            DURATIONS.observe(time.perf_counter() - began)

    async def add_fd(self, fdset: int, descriptor: int) -> None:
        """Hand an open file over to a set of QEMU's, which then has a descriptor of its own. Raises MonitorFailed."""
        await self._hand(descriptor, "add-fd", {"fdset-id": fdset})

    async def get_fd(self, name: str, descriptor: int) -> None:
        """Hand an open file over to QEMU, which uses it up by this name. Raises MonitorFailed."""
        await self._hand(descriptor, "getfd", {"fdname": name})

    async def _hand(self, descriptor: int, command: str, arguments: dict[str, Any]) -> None:
        async with self._handing:
            try:
                with socket.socket(fileno=os.dup(self._client_descriptor())) as connection:
                    # A space between two commands, with the descriptor: QEMU keeps it for the next command.
                    socket.send_fds(connection, [b" "], [descriptor])
            except OSError as error:
                raise MonitorFailed(f"QEMU does not take an open file: {error}") from error
            await self.execute(command, arguments)

    def _client_descriptor(self) -> int:
        writer = self._client._writer
        if writer is None:
            raise OSError("its monitor is closed")
        descriptor: int = writer.get_extra_info("socket").fileno()
        return descriptor

    async def status(self) -> str:
        """Return QEMU's run state, for example ``running`` (QMP RunState)."""
        return str((await self.execute("query-status"))["status"])

    async def close(self) -> None:
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        with contextlib.suppress(Exception):  # the connection is closed anyway
            await asyncio.wait_for(self._client.disconnect(), 2)

    async def _events(self) -> None:
        async for event in self._client.events:
            try:
                self._on_event(str(event["event"]), cast("dict[str, Any]", event.get("data", {})))
            except Exception:  # a defect met with one event, such as one without what it should say
                log.exception("defect while an event of QEMU was taken", event_name=str(event.get("event"))[:100])
