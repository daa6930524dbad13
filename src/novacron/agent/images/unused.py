"""Images that were copied here for a VM: the server learns when none has needed one for long."""

from __future__ import annotations

import time
from collections.abc import Set
from pathlib import Path

from novacron.agent.settings import AgentSettings
from novacron.disk.images import LocalImage
from novacron.model.node import ImageInfo

MARK = ".fetched-"
"""Before the name of an image: a file, touched whenever a VM here is made of it."""


def mark(settings: AgentSettings, image: str) -> None:
    """Note that an image is here for VMs' sake. Raises OSError."""
    _path(settings.images_dir, image).touch()


def forget(settings: AgentSettings, image: str) -> None:
    """The image goes. Raises OSError."""
    _path(settings.images_dir, image).unlink(missing_ok=True)


def _path(root: Path, image: str) -> Path:
    return root / f"{MARK}{image}"


def idle(settings: AgentSettings, images: dict[str, LocalImage], in_use: Set[str]) -> list[ImageInfo]:
    """Return the images that came for VMs of which none has been here for ``keep_images_s``. Raises OSError."""
    idle_images = []
    for path in settings.images_dir.glob(f"{MARK}*"):
        name = path.name.removeprefix(MARK)
        if name not in images:
            path.unlink(missing_ok=True)
        elif name in in_use:
            path.touch()
        elif time.time() - path.stat().st_mtime > settings.keep_images_s:
            idle_images.append(images[name].info)
    return idle_images
