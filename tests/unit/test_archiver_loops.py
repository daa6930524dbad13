"""A defect in one of the archiver's loops ends no other: above all, WAL is received."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from novacron.local import database_archiver
from novacron.local.database_archiver import FAILURES, Archiver, ArchiverSettings
from novacron.telemetry.shared import Processes
from novacron.telemetry.values import counter
from tests.waiting import eventually

LOOPS = {"receive": "receive-wal", "store": "store-wal", "make_bases": "base-backups", "run": "shared-metrics"}


@pytest.mark.parametrize("bad", LOOPS)
async def test_a_loop_that_meets_a_defect_is_begun_again_and_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    begun, ended, stop = Counter[str](), list[str](), asyncio.Event()

    def loop(name: str) -> object:
        async def work(_: object) -> None:
            begun[name] += 1
            if name == bad and begun[name] == 1:
                raise RuntimeError("a defect")
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(name)

        return work

    async def stored(_: object) -> None:
        begun["store_once"] += 1

    for name in LOOPS:
        monkeypatch.setattr(Processes if name == "run" else Archiver, name, loop(name))
    monkeypatch.setattr(Archiver, "store_once", stored)
    settings = ArchiverSettings(
        "postgresql://u@127.0.0.1/db", str(tmp_path / "repository"), str(tmp_path / "password"),
        str(tmp_path / "spool"), str(tmp_path / "metrics"), 3600.0, 7,
    )  # fmt: skip
    restarts, failures = (counter(name) for name in ("novacron_work_restarts_total", FAILURES))
    before = restarts.cell(LOOPS[bad])[0], failures.cell()[0]
    archiver = Archiver(settings)
    archiver._stored["segment"] = 1
    running = asyncio.create_task(database_archiver.run(archiver, stop))
    await eventually(lambda: begun[bad] == 2, "it is begun again")
    assert ended == [] and not running.done(), "the others go on"
    assert (restarts.cell(LOOPS[bad])[0], failures.cell()[0]) == (before[0] + 1, before[1] + 1)
    assert archiver._stored == {}, "what was known of the repository is not trusted"
    stop.set()
    async with asyncio.timeout(30):
        await running
    assert begun["store_once"] == 1 and sorted(ended) == sorted(LOOPS)
