"""What the server asks this node, once, and what it is answered."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from novacron.agent.imports import Imports
from novacron.agent.worker import Host
from novacron.disk.formats import Unacceptable
from novacron.model.errors import InvalidInput
from novacron.telemetry import logs
from novacron.wire import messages as wire

log = logs.get(__name__)


async def answer(message: wire.Ask, imports: Imports, host: Host, look: Callable[[], Awaitable[None]]) -> wire.Answered:
    """Return the answer to a question, whatever happens. ``look`` looks at the images again."""
    try:
        value = await _value(message.question, imports, host, look)
    except InvalidInput as error:
        return wire.Answered(message.ask, error=error.detail, field=error.field)
    except (Unacceptable, OSError, TimeoutError) as error:
        return wire.Answered(message.ask, error=str(error) or type(error).__name__)
    except Exception as error:  # a defect: who asked must not wait for it in vain
        log.exception("defect in an answer")
        return wire.Answered(message.ask, error=f"its agent has a defect: {type(error).__name__}; see its log")
    return wire.Answered(message.ask, msgspec.Raw(wire.encoder.encode(value)))


async def _value(question: wire.Question, imports: Imports, host: Host, look: Callable[[], Awaitable[None]]) -> Any:
    match question:
        case wire.TakePiece(id=id, offset=offset, data=data):
            return await imports.take(id, offset, data)
        case wire.RemoveImage(name=name, digest=digest):
            image = host.images.get(name)
            if image is not None and image.info.digest == digest:
                await asyncio.to_thread(_remove, host, name)
                await look()
            return None


def _remove(host: Host, name: str) -> None:
    """Remove an image, whole or not at all: it is out of sight before its files go."""
    root = host.settings.images_dir
    gone = root / f".removed-{host.settings.name}-{name}"
    shutil.rmtree(gone, ignore_errors=True)
    place = root / name
    if place.is_symlink():
        place.unlink()
        return
    place.rename(gone)
    shutil.rmtree(gone)
