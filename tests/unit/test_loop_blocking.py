"""What takes seconds with large files, or on a busy disk, is done beside the agent's loop: its leases hang on it."""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from novacron.agent.control.peers import PeerWatch
from novacron.agent.host.clock import SystemClock
from novacron.agent.host.lease import NodeLease
from novacron.agent.images.imports import ImageImports
from novacron.agent.settings import AgentSettings
from novacron.disk import convert, overlay, qemu_img
from novacron.model.image import ImageFormat, ImportSpec, Source
from novacron.model.lease import POLL_S
from novacron.wire import messages as wire
from tests.waiting import eventually, pause_async

SLOW = ("fsync", "fdatasync", "truncate", "ftruncate", "unlink", "link", "rename")
"""Calls that a file system may take its time for."""


@pytest.fixture
def on_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The slow calls that the loop's own thread has made, with their first argument."""
    calls, loops = list[str](), threading.get_ident()

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def work(*args: Any, **options: Any) -> Any:
            if threading.get_ident() == loops:
                calls.append(f"{name} {args[0]}")
            return call(*args, **options)

        return work

    for name in SLOW:
        monkeypatch.setattr(os, name, watched(name, getattr(os, name)))
    yield calls
    monkeypatch.undo()


async def nothing() -> None: ...


def imports_of(directory: Path) -> ImageImports:
    settings = AgentSettings(directory / "state", directory / "images", "host-a", imports=directory / "in")
    for path in (settings.images_dir, directory / "in"):
        path.mkdir()
    return ImageImports(settings, lambda _: None, nothing)


@pytest.mark.parametrize("is_compressed", [False, True])
async def test_an_import_touches_large_files_beside_the_loop(
    tmp_path: Path, on_loop: list[str], is_compressed: bool
) -> None:
    imports, disk = imports_of(tmp_path), b"x" * 70_001
    (tmp_path / "in" / "disk").write_bytes(gzip.compress(disk) if is_compressed else disk)
    spec = ImportSpec("web", Source.PATH, "disk", format=ImageFormat.RAW)
    import_ = wire.ImportWanted("import-1", spec, disk_bytes=len(disk))
    scratch = imports._scratch(import_)
    scratch.mkdir()
    for name in ("source", "disk.raw", "unpacked"):  # of an earlier agent, killed on the way
        (scratch / name).write_bytes(b"old")
    await imports._import(import_, scratch)
    image = tmp_path / "images" / "web"
    assert (image / "disk.raw").read_bytes().rstrip(b"\0") == disk
    assert [call for call in on_loop if "manifest" not in call] == []


async def test_an_upload_that_is_longer_than_announced_is_cut_beside_the_loop(
    tmp_path: Path, on_loop: list[str]
) -> None:
    imports = imports_of(tmp_path)
    import_ = wire.ImportWanted("import-1", ImportSpec("web", Source.UPLOAD, size_bytes=100))
    imports._more[import_.id] = asyncio.Event()
    source = tmp_path / "source"
    source.write_bytes(b"x" * 60)
    receiving = asyncio.create_task(imports._receive(import_, source))
    await asyncio.sleep(0)
    source.write_bytes(b"x" * 4096)
    imports._more[import_.id].set()
    async with asyncio.timeout(30):
        await receiving
    assert source.stat().st_size == 100 and on_loop == []


async def test_a_conversion_waits_for_the_disk_beside_the_loop(
    tmp_path: Path, on_loop: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(*_: object) -> bytes:
        return b""

    monkeypatch.setattr(qemu_img, "run", run)
    (tmp_path / "source").write_bytes(b"x" * 4096)
    user = convert.ToolUser(qemu_img.unchanged, None)
    await convert.convert(tmp_path / "source", ImageFormat.QCOW2, tmp_path / "target", 8192, 0, user)
    await convert.flatten([tmp_path / "source"], tmp_path / "flat", 0, user)
    assert [call for call in on_loop if not call.startswith("ftruncate")] == [], "an empty file grows at once"


@pytest.mark.parametrize("has_source", [True, False])
async def test_a_copy_of_a_layer_is_synced_or_removed_beside_the_loop(
    tmp_path: Path, on_loop: list[str], has_source: bool
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    if has_source:
        source.write_bytes(b"x" * 4096)
        await overlay.copy(source, target)
    else:
        source.mkdir()
        target.write_bytes(b"half")
        with pytest.raises(overlay.OverlayFailed):
            await overlay.copy(source, target)
    assert target.exists() is has_source and on_loop == []


async def test_a_copy_of_a_layer_that_is_cancelled_is_removed_beside_the_loop(
    tmp_path: Path, on_loop: list[str]
) -> None:
    os.mkfifo(tmp_path / "source")
    command = tmp_path / "cp"  # which does not end by itself
    command.write_text(f"#!/bin/sh\nexec {shutil.which('tail')} -f /dev/null > '{tmp_path}/target'\n")
    command.chmod(0o755)
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{tmp_path}:{path}"
    try:
        copying = asyncio.create_task(overlay.copy(tmp_path / "source", tmp_path / "target"))
        await eventually((tmp_path / "target").exists, "it is copied")
    finally:
        os.environ["PATH"] = path
    copying.cancel()
    await asyncio.gather(copying, return_exceptions=True)
    assert not (tmp_path / "target").exists() and on_loop == []


class Turns(SystemClock):
    """A clock on which no sleep takes any time."""

    async def sleep(self, seconds: float) -> None:
        assert seconds == POLL_S
        await pause_async(0.001)


async def test_the_list_of_peers_is_stored_beside_the_loop_and_its_voters_count_from_then_on(
    tmp_path: Path, on_loop: list[str]
) -> None:
    lease = NodeLease(tmp_path / "lease")
    watch = PeerWatch(tmp_path / "peers.json", "me", cast(Any, None), lease, Turns(), lambda: None)
    on_loop.clear()
    watch.tell(wire.Peers((wire.Peer("a", "127.0.0.1:1"),), ()))
    assert lease.rule.voters_next == () and not (tmp_path / "peers.json").exists(), "the link's reader does not wait"
    running = asyncio.create_task(watch.run())
    await eventually(lambda: lease.rule.voters_next == ("a",), "its voters count")
    assert b'"a"' in (tmp_path / "peers.json").read_bytes()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [call for call in on_loop if "peers" in call] == []
