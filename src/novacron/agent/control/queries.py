"""What the server asks this node, once, and what it is answered."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from novacron.agent.images import unused
from novacron.agent.images.exports import Exports
from novacron.agent.images.imports import Imports
from novacron.agent.observe.metrics import AgentMetrics
from novacron.agent.vm import console_log
from novacron.agent.vm.machine import Machine
from novacron.agent.worker import Host, Worker
from novacron.disk.formats import Unacceptable
from novacron.model.errors import InvalidInput
from novacron.qemu.monitor import MonitorFailed
from novacron.telemetry import logs
from novacron.telemetry.values import counter
from novacron.wire import messages as wire
from novacron.wire import questions

log = logs.get(__name__)


class Asked(msgspec.Struct, frozen=True):
    """Of what the node is asked. ``look`` looks at its images again."""

    imports: Imports
    exports: Exports
    host: Host
    workers: Mapping[str, Worker]
    look: Callable[[], Awaitable[None]]
    metrics: AgentMetrics

    def machine(self, vm: str) -> Machine:
        """Return a VM that is here. Raises InvalidInput."""
        worker = self.workers.get(vm)
        if worker is None:
            raise InvalidInput(f"VM {vm} is not here", field="vm")
        return worker.machine


async def answer(message: wire.Ask, of: Asked) -> wire.Answered:
    """Return the answer to a question, whatever happens."""
    outcome = "refused"
    try:
        value = await _value(message.question, of)
        outcome = "answered"
    except InvalidInput as error:
        return wire.Answered(message.ask, error=error.detail, field=error.field)
    except (Unacceptable, MonitorFailed, OSError, TimeoutError) as error:
        outcome = "failed"
        return wire.Answered(message.ask, error=str(error) or type(error).__name__)
    except Exception as error:  # a defect: who asked must not wait for it in vain
        outcome = "failed"
        log.exception("defect in an answer")
        return wire.Answered(message.ask, error=f"its agent has a defect: {type(error).__name__}; see its log")
    finally:
        counter("novacron_agent_questions_total").add(type(message.question).__name__, outcome)
    return wire.Answered(message.ask, msgspec.Raw(wire.encoder.encode(value)))


async def _value(question: questions.Question, of: Asked) -> Any:
    match question:
        case questions.ReadMetrics(open_metrics=open_metrics):
            return await of.metrics.render(open_metrics=open_metrics)
        case questions.SetLogLevel(level=level):
            try:
                logs.set_level(level)
            except ValueError as error:
                raise InvalidInput(str(error), field="level") from error
            log.warning("the log's level is another now", level=level)
            return None
        case questions.TakePiece(id=id, offset=offset, data=data):
            return await of.imports.take(id, offset, data)
        case questions.ReadExport(id=id, offset=offset, bytes_max=bytes_max):
            return await asyncio.to_thread(of.exports.read, id, offset, bytes_max)
        case questions.ReadFirmwareState(id=id):
            return await asyncio.to_thread(of.exports.read_firmware_state, id)
        case questions.ReadConsoleLog(vm=vm, bytes_max=bytes_max):
            return await asyncio.to_thread(console_log.read, of.machine(vm).directory, bytes_max)
        case questions.TakeScreenshot(vm=vm):
            return await of.machine(vm).screenshot()
        case questions.RemoveImage(name=name, digest=digest):
            image = of.host.images.get(name)
            if image is not None and image.info.digest == digest:
                await asyncio.to_thread(_remove, of.host, name)
                await of.look()
            return None


def _remove(host: Host, name: str) -> None:
    """Remove an image, whole or not at all: it is out of sight before its files go."""
    root = host.settings.images_dir
    unused.forget(host.settings, name)
    gone = root / f".removed-{host.settings.name}-{name}"
    shutil.rmtree(gone, ignore_errors=True)
    place = root / name
    if place.is_symlink():
        place.unlink()
        return
    place.rename(gone)
    shutil.rmtree(gone)
