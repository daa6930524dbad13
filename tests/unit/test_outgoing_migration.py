"""A live migration at its source goes from phase to phase and promises once, whatever QEMU and the peer do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest

from novacron.agent.migration import source_stream
from novacron.agent.migration.outgoing import OutgoingMigration
from novacron.agent.migration.phases import SourcePhase
from novacron.agent.migration.pre_copy import TransferFailed
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.journal import Record
from novacron.agent.worker import Worker
from novacron.dwcp.page_codec import PageSavings
from novacron.dwcp.send_pipeline import Counters
from novacron.dwcp.sender import SendFailed
from novacron.model.migration import MigrationKind, MigrationPolicy, Side
from novacron.model.ownership import Claim, OwnershipRecord
from novacron.qemu import transfer
from novacron.qemu.transfer import TransferStatus
from novacron.wire import messages as wire
from tests.support.agent import sent_messages, services_in

EPOCH = 4


class Setting:
    """A VM that is sent, with a QEMU that gives the statuses of a list, one after another."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, statuses: list[TransferStatus]) -> None:
        sent_messages.clear()
        directory.joinpath("vms", "vm-a").mkdir(parents=True)
        self.context: VmContext = Worker(
            "vm-a", Record(OwnershipRecord(EPOCH, Claim.OWNER)), services_in(directory)
        ).context
        self.context.machine.monitor = cast(Any, Mock())
        self.pumped = asyncio.Event()
        self.cancelled: list[str] = []
        self._statuses: Iterator[TransferStatus] = iter(statuses)
        self._status = TransferStatus("none")
        self.calls: list[str] = []
        for name in ("send", "switch", "start_post_copy", "throttle", "go_on"):
            monkeypatch.setattr(transfer, name, AsyncMock(side_effect=lambda *_, _n=name, **__: self.calls.append(_n)))
        monkeypatch.setattr(transfer, "logs_every_write", AsyncMock(return_value=True))
        monkeypatch.setattr(OutgoingMigration, "report", lambda *_: None)  # progress is not what is tested
        monkeypatch.setattr(transfer, "status", self._next_status)
        monkeypatch.setattr(source_stream, "pump", self._pump)
        monkeypatch.setattr(source_stream, "cancel", AsyncMock(side_effect=lambda *_: self.cancelled.append("cancel")))
        self.pump_error: Exception | None = None

    async def _next_status(self, _monitor: object) -> TransferStatus:
        self._status = next(self._statuses, self._status)
        return self._status

    async def _pump(self, *_: Any, splitter: Any, **__: Any) -> None:
        splitter.packaged = True
        if self.pump_error is not None:
            raise self.pump_error
        await asyncio.sleep(0)

    def migration(self, policy: MigrationPolicy) -> OutgoingMigration:
        sender = MagicMock(rate_bytes_per_s=100e6, backlog_bytes=0, counters=Counters())
        sender.__aexit__ = AsyncMock(return_value=None)
        sender.savings = PageSavings()
        opener = Mock(open=AsyncMock(return_value=sender))
        task = wire.Task(
            "mig-a", Side.SOURCE, MigrationKind.LIVE, "host-b", EPOCH, endpoint="127.0.0.1:7445", policy=policy
        )
        return OutgoingMigration(task, self.context, opener)


def status(name: str, passes: int, remaining_bytes: int) -> TransferStatus:
    return TransferStatus(name, total_bytes=1 << 30, remaining_bytes=remaining_bytes, passes=passes)


LIVE = [status("active", 1, 1 << 29), status("active", 2, 4096), status("completed", 3, 0)]


async def test_the_source_promises_when_qemu_has_sent_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(tmp_path, monkeypatch, LIVE)
    migration = setting.migration(MigrationPolicy.THROTTLE)
    await source_stream.send(migration)
    assert migration.phase is SourcePhase.PROMISED
    assert setting.calls == ["send", "switch"]
    assert sent_messages == [wire.Voted("mig-a", Side.SOURCE, EPOCH)]
    held = setting.context.services.journal.load_one("vm-a").held
    assert held == setting.context.record.held == OwnershipRecord(EPOCH, Claim.RELEASED)
    assert setting.cancelled == []


async def test_with_post_copy_the_source_promises_before_all_memory_has_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "logs_every_write", AsyncMock(return_value=False))
    statuses = [status("active", 1, 1 << 28), status("postcopy-active", 1, 1 << 28), status("completed", 1, 0)]
    setting = Setting(tmp_path, monkeypatch, statuses)
    monkeypatch.setattr(transfer, "logs_every_write", AsyncMock(return_value=False))
    migration = setting.migration(MigrationPolicy.POST_COPY)
    await source_stream.send(migration)
    assert migration.phase is SourcePhase.POST_COPY
    assert setting.calls == ["send", "start_post_copy"]
    assert sent_messages == [wire.Voted("mig-a", Side.SOURCE, EPOCH)]
    assert setting.context.record.post_copy is not None


async def test_without_a_promise_the_guest_continues_at_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(tmp_path, monkeypatch, LIVE[:1])
    setting.pump_error = SendFailed("the link is down")
    migration = setting.migration(MigrationPolicy.THROTTLE)
    with pytest.raises(TransferFailed, match="the link is down"):
        await source_stream.send(migration)
    migration.end()
    assert (migration.phase, setting.cancelled, sent_messages) == (SourcePhase.FAILED, ["cancel"], [])
    assert setting.context.record.held.claim is Claim.OWNER


async def test_a_failure_after_the_promise_changes_nothing_at_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(tmp_path, monkeypatch, [status("completed", 1, 0)])
    setting.pump_error = SendFailed("the link is down")
    migration = setting.migration(MigrationPolicy.THROTTLE)
    await source_stream.send(migration)
    migration.end()
    assert (migration.phase, setting.cancelled) == (SourcePhase.DONE, [])
    assert setting.context.record.held.claim is Claim.RELEASED


async def test_the_source_does_not_promise_after_a_later_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(tmp_path, monkeypatch, LIVE)
    await setting.context.store(held=OwnershipRecord(EPOCH + 1, Claim.OWNER))
    with pytest.raises(ValueError, match="cannot release"):
        await source_stream.send(setting.migration(MigrationPolicy.THROTTLE))
    assert setting.context.record.held == OwnershipRecord(EPOCH + 1, Claim.OWNER)
    assert sent_messages == []
