"""The fence command: what it says is quoted, and neither it nor what it starts keeps the server waiting."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from novacron.control import fencing
from tests.waiting import eventually


def program(directory: Path, text: str) -> Path:
    path = directory / "fence"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fencing, "FENCE_PAUSE_S", 0.0)


def runs(pid: int) -> bool:
    """Say whether a process has not ended: an ended one may wait for its parent to take notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def test_a_fence_command_gets_the_nodes_name_and_cuts_it_off(tmp_path: Path) -> None:
    assert await fencing.cut_off(program(tmp_path, '[ "$1" = a ]'), "a") == (True, "")


async def test_a_fence_command_that_fails_is_tried_again_and_quoted(tmp_path: Path) -> None:
    path = program(tmp_path, f'echo "$1" >> {tmp_path}/tried; seq 100000; echo "no such outlet"; exit 3')
    done = await fencing.cut_off(path, "a")
    assert not done.cut_off and done.error.endswith("no such outlet") and "exited with 3" in done.error
    assert len(done.error) < 1000
    assert (tmp_path / "tried").read_text() == "a\n" * fencing.FENCE_TRIES_MAX


async def test_a_fence_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "No such file" in (await fencing.cut_off(tmp_path / "none", "a")).error


async def test_what_a_fence_command_leaves_behind_keeps_nobody_waiting(tmp_path: Path) -> None:
    path = program(tmp_path, f"sleep 600 & echo $! > {tmp_path}/pid")
    async with asyncio.timeout(25):  # less than the limit, after which it would count as failed
        assert (await fencing.cut_off(path, "a")).cut_off
    os.kill(int((tmp_path / "pid").read_text()), 9)


async def test_a_fence_command_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fencing, "FENCE_S_MAX", 0.1)
    monkeypatch.setattr(fencing, "FENCE_TRIES_MAX", 1)
    async with asyncio.timeout(30):
        done = await fencing.cut_off(program(tmp_path, "sleep 600 & wait"), "a")
    assert not done.cut_off and "did not end within" in done.error


async def test_a_fence_command_that_is_given_up_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    path = program(tmp_path, f"sleep 600 & echo $! > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; wait")
    task = asyncio.create_task(fencing.cut_off(path, "a"))
    await eventually((tmp_path / "pid").exists, "the command runs")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    child = int((tmp_path / "pid").read_text())
    await eventually(lambda: not runs(child), "what the command started has ended")
