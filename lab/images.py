"""Build the images that the demo, tests and benchmarks boot, once: ``python -m lab.images``."""

from __future__ import annotations

from pathlib import Path

from lab.platform import default_cache
from novacron.disk import tiny


def images_dir() -> Path:
    """Return the directory of images, with the tiny guest in it."""
    directory = default_cache() / "images"
    if not (directory / "tiny").exists():
        print("setup: building the tiny guest image: Debian's cloud kernel and busybox", flush=True)
    tiny.build(directory / "tiny")
    return directory


if __name__ == "__main__":
    images_dir()
