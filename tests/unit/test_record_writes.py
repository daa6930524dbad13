"""What a worker remembers is written in a thread, and memory and disk never tell two things."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from novacron.agent.vm.journal import Journal, Record
from novacron.agent.worker import Worker
from novacron.model.ownership import Claim, OwnershipRecord
from tests.support.agent import services_in


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writes end once the event is set."""
    may_end, store = threading.Event(), Journal.store

    def slowly(self: Journal, vm: str, record: Record) -> None:
        assert may_end.wait(20)
        store(self, vm, record)

    monkeypatch.setattr(Journal, "store", slowly)
    return may_end


async def test_a_slow_disk_does_not_hold_up_the_event_loop(tmp_path: Path, slow_disk: threading.Event) -> None:
    context = Worker("vm-a", Record(), services_in(tmp_path)).context
    writing = asyncio.create_task(context.store(reboots=1))
    for _ in range(10):
        await asyncio.sleep(0)
    assert (writing.done(), context.record.reboots) == (False, 0)
    slow_disk.set()
    await writing
    assert (context.record.reboots, Journal(tmp_path / "journal").load_one("vm-a").reboots) == (1, 1)


async def test_a_promise_whose_writing_is_cancelled_is_remembered_if_it_reaches_the_disk(
    tmp_path: Path, slow_disk: threading.Event
) -> None:
    context = Worker("vm-a", Record(OwnershipRecord(3, Claim.OWNER)), services_in(tmp_path)).context
    promise = OwnershipRecord(3, Claim.RELEASED)
    writing = asyncio.create_task(context.store(held=promise))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.sleep(0)
    assert not writing.done()
    slow_disk.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert Journal(tmp_path / "journal").load_one("vm-a").held == context.record.held == promise


async def test_concurrent_changes_of_a_record_are_both_kept(tmp_path: Path, slow_disk: threading.Event) -> None:
    context = Worker("vm-a", Record(), services_in(tmp_path)).context
    writing = asyncio.gather(context.store(reboots=1), context.store(crashes=2))
    await asyncio.sleep(0)
    slow_disk.set()
    await writing
    assert (context.record.reboots, context.record.crashes) == (1, 2)
