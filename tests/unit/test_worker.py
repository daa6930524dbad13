"""What a worker says to the server, and when it says it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from novacron.agent.host.lease import NodeLease
from novacron.agent.host.networks import Networks
from novacron.agent.host.passthrough import Passthrough
from novacron.agent.host.volumes import Pools
from novacron.agent.settings import Settings
from novacron.agent.vm.journal import Journal, Record
from novacron.agent.vm.start_queue import Turns
from novacron.agent.worker import Host, Worker
from novacron.model.node import AcceleratorKind
from novacron.model.ownership import Claim, Held
from novacron.model.vm import Restart, VmSpec, VmState
from novacron.wire import messages as wire

said: list[Any] = []


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    said.clear()
    settings = Settings(tmp_path, tmp_path / "images", "host-a")
    host = Host(
        settings=settings,
        identity=cast(Any, None),
        journal=Journal(tmp_path / "journal"),
        listener=cast(Any, None),
        images={},
        accelerator=AcceleratorKind.TCG,
        cpu=None,
        endpoint="127.0.0.1:7445",
        pool=cast(Any, None),
        pages=cast(Any, None),
        worker=lambda _: None,
        neighbours=list,
        aside=lambda work: work.close(),
        pools=Pools(settings),
        turns=Turns(4),
        lease=NodeLease(settings.lease_path),
        networks=Networks(settings),
        passthrough=Passthrough(),
        send=said.append,
    )
    return Worker("vm-a", Record(Held(1, Claim.OWNER)), host)


def test_what_has_not_changed_is_said_once(worker: Worker) -> None:
    worker.report(VmState.RUNNING)
    worker.report(VmState.RUNNING)
    assert [type(message) for message in said] == [wire.Observed]


async def test_a_new_link_hears_everything_again(worker: Worker) -> None:
    worker.report(VmState.RUNNING)
    worker.resync()
    worker.report(VmState.RUNNING)
    assert len(said) == 2


def test_what_was_said_at_an_older_epoch_is_said_again_at_a_later_one(worker: Worker) -> None:
    """Found by kills at random moments: the server ignores reports of an older epoch, so they must not count."""
    worker.report(VmState.RUNNING)
    worker.store(held=Held(2, Claim.OWNER))
    worker.report(VmState.RUNNING)
    assert [message.epoch for message in said] == [1, 2]


def test_what_cannot_be_written_down_is_not_remembered(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A promise, or an epoch, that is not durable must not be acted on."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "store", full)
    with pytest.raises(OSError):
        worker.store(held=Held(2, Claim.OWNER))
    assert worker.record.held == Held(1, Claim.OWNER)


def test_crashes_are_counted_and_remembered_through_the_agents_own_death(worker: Worker, tmp_path: Path) -> None:
    worker._owning._started_at = 1e12  # just now, whatever the clock says
    worker._owning.count_crash("test")
    worker._owning.count_crash("test")
    assert Journal(tmp_path / "journal").load_one("vm-a").crashes == 2


def assigned(restart: Restart) -> wire.Assignment:
    spec = VmSpec(image="tiny", starts=3, restart=restart)
    return wire.Assignment("vm-a", "a", spec, False, "", 0, None, "default", bytes(32))


@pytest.mark.parametrize(
    ("restart", "halted"), [(Restart.NEVER, 3), (Restart.ON_FAILURE, None), (Restart.ALWAYS, None)]
)
def test_a_vm_that_crashed_stays_off_only_where_that_was_asked_for(
    worker: Worker, restart: Restart, halted: int | None
) -> None:
    worker.assignment = assigned(restart)
    worker._owning.count_crash("test")
    assert (worker.record.halted_at_start, worker.record.crashes) == (halted, 1)
