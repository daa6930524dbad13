"""Platforms of two nodes for drills, on this machine or on hosts of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.copied_postgres import CopiedPostgres
from lab.hosts import Lab, lab
from lab.images import images_dir
from lab.platform import Platform, PlatformOptions, default_cache


class DrilledPlatform(Platform):
    """Its database begins as a copy."""

    new_postgres = CopiedPostgres


@contextmanager
def small_platform(
    directory: Path, options: PlatformOptions | None = None, *, namespaces: bool = False
) -> Iterator[Platform]:
    """Run two nodes; with ``namespaces``, each in a network of its own, with a WAN between them."""
    before = os.environ.get("NOVACRON_CONFIG")
    with lab(f"nvd{os.getpid()}", default_cache(), namespaces=namespaces) as hosts:
        made = _make(directory / "p", hosts, options)
        try:
            made.up()
            yield made
        finally:
            made.down()
            if before is not None:
                os.environ["NOVACRON_CONFIG"] = before


def _make(directory: Path, hosts: Lab, options: PlatformOptions | None) -> Platform:
    return DrilledPlatform(directory, hosts, images_dir(), options)
