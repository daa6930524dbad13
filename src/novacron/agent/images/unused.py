"""Images that came because a VM here needed them: the server is told when none has for long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from novacron.agent.settings import Settings
from novacron.disk.images import Image
from novacron.wire import messages as wire

MARK = ".fetched-"
"""Before the name of an image: a file, touched whenever a VM here is made of it."""


def mark(settings: Settings, image: str) -> None:
    """Note that an image is here for VMs' sake. Raises OSError."""
    _path(settings.images_dir, image).touch()


def forget(settings: Settings, image: str) -> None:
    """The image goes. Raises OSError."""
    _path(settings.images_dir, image).unlink(missing_ok=True)


def _path(root: Path, image: str) -> Path:
    return root / f"{MARK}{image}"


def look(
    settings: Settings, images: dict[str, Image], used: Iterable[str], send: Callable[[wire.Message], None]
) -> None:
    """Tell of images that came for VMs of which none is here any more. Raises OSError."""
    used = set(used)
    for path in settings.images_dir.glob(f"{MARK}*"):
        name = path.name.removeprefix(MARK)
        if name not in images:
            path.unlink(missing_ok=True)
        elif name in used:
            path.touch()
        elif time.time() - path.stat().st_mtime > settings.keep_images_s:
            send(wire.ImageIdle(name, images[name].info.digest))
