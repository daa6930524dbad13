"""A revert to a snapshot and a copy of the disk are never at once: the copy would be of no moment of the disk."""

from __future__ import annotations

import asyncio
from unittest.mock import MagicMock

import pytest

from novacron.agent.vm import snapshots
from novacron.agent.vm.reconciler import RETRY_S, REVERT_WAITS, Reconciler
from novacron.model.snapshot import SnapshotPhase
from novacron.model.vm import VmState
from novacron.model.waiting import WaitCode
from novacron.wire import messages as wire


@pytest.mark.parametrize(("phase", "waits"), [(SnapshotPhase.REVERTING, True), (SnapshotPhase.CREATING, False)])
async def test_a_revert_waits_for_a_copy_and_keeps_others_away(
    monkeypatch: pytest.MonkeyPatch, phase: SnapshotPhase, waits: bool
) -> None:
    worked = list[bool]()
    context = MagicMock()
    copying = context.machine.copying = asyncio.Lock()
    reconciler = Reconciler(context, MagicMock())

    async def work(*_: object) -> snapshots.SnapshotOutcome:
        worked.append(copying.locked())
        return snapshots.NOTHING_TO_TELL

    async def store(**_: object) -> None:
        pass

    monkeypatch.setattr(snapshots, "work", work)
    context.store = store
    snapshot = wire.SnapshotWanted("snap-1", phase, memory=True, quiesce=False, asked=1)
    async with copying:
        assert await reconciler._work_on(snapshot, "running") == (RETRY_S if waits else 0)
    said = [call.args for call in context.report.call_args_list]
    expected = [(VmState.RUNNING, REVERT_WAITS, WaitCode.DISK_BEING_COPIED)] if waits else []
    assert said == expected, "what becomes of the VM meanwhile is seen"
    if waits:
        assert worked == [] and await reconciler._work_on(snapshot, "running") == 0
    assert worked == [True] and not copying.locked()
    assert await reconciler._work_on(snapshot, "running") is None, "it is done once"
