"""The last gate: no guest executes on a node that does not own its VM, whatever led there."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import AsyncMock, Mock

import pytest

from novacron.agent.vm.context import MayNotRun
from novacron.agent.vm.journal import Record
from novacron.agent.vm.power import Step
from novacron.agent.worker import Worker
from novacron.disk.images import LocalImage
from novacron.model.ownership import Claim, OwnershipRecord
from novacron.model.vm import Restart
from tests.support.agent import assigned, services_in

NOT_OWNERS = [Record(OwnershipRecord(3, claim)) for claim in Claim if claim is not Claim.OWNER]
DAMAGED = Record(OwnershipRecord(3, Claim.OWNER), damaged=True)


def worker_with(record: Record, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    worker = Worker("vm-a", record, services_in(directory))
    worker.context.assignment = assigned(Restart.ALWAYS)
    worker.machine.directory.mkdir(parents=True)
    worker.context.services.images["tiny"] = Mock(spec=LocalImage, disk=None)
    for method in ("start", "execute"):
        monkeypatch.setattr(worker.machine, method, AsyncMock())
    return worker


@pytest.mark.parametrize("step", [Step.START, Step.CONTINUE, Step.MAKE_ROOM])
@pytest.mark.parametrize("record", [*NOT_OWNERS, DAMAGED], ids=lambda record: f"{record.held.claim}{record.damaged}")
async def test_a_node_that_does_not_own_a_vm_neither_starts_nor_resumes_it(
    record: Record, step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_with(record, tmp_path, monkeypatch)
    with pytest.raises(MayNotRun, match="vm-a must not run on this node"):
        await worker._reconciler._do(step, worker.context.assigned(), "paused", 0.0)
    for method in (worker.machine.start, worker.machine.execute):
        assert isinstance(method, AsyncMock)
        method.assert_not_called()


@pytest.mark.parametrize("step", [Step.CONTINUE, Step.MAKE_ROOM])
async def test_the_owner_resumes_its_guest(step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = worker_with(Record(OwnershipRecord(3, Claim.OWNER)), tmp_path, monkeypatch)
    await worker._reconciler._do(step, worker.context.assigned(), "paused", 0.0)
    assert isinstance(worker.machine.execute, AsyncMock)
    worker.machine.execute.assert_awaited_with("cont")
