"""What a worker says to the server, and when it says it again."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import AsyncMock, Mock

import msgspec
import pytest

from novacron.agent.vm.directory import DISK_LAYER
from novacron.agent.vm.journal import AnewAsked, Journal, Record
from novacron.agent.vm.power import Step, decide
from novacron.agent.worker import Worker
from novacron.model.migration import MigrationKind, Side
from novacron.model.ownership import Claim, Order, OrderKind, OrderVerdict, OwnershipRecord
from novacron.model.unreconciled import VmDescription
from novacron.model.vm import Restart, VmState
from novacron.wire import messages as wire
from tests.support.agent import assigned, sent_messages, services_in


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    sent_messages.clear()
    return Worker("vm-a", Record(OwnershipRecord(1, Claim.OWNER)), services_in(tmp_path))


def test_an_unchanged_observation_is_reported_once(worker: Worker) -> None:
    worker.context.report(VmState.RUNNING)
    worker.context.report(VmState.RUNNING)
    assert [type(message) for message in sent_messages] == [wire.Observed]


async def test_a_new_link_gets_every_report_again(worker: Worker) -> None:
    worker.context.report(VmState.RUNNING)
    worker.resync()
    worker.context.report(VmState.RUNNING)
    assert len(sent_messages) == 2


async def test_a_report_is_repeated_when_the_epoch_grows(worker: Worker) -> None:
    """Found by kills at random moments: the server ignores reports of an older epoch, so they must not count."""
    worker.context.report(VmState.RUNNING)
    await worker.context.store(held=OwnershipRecord(2, Claim.OWNER))
    worker.context.report(VmState.RUNNING)
    assert [message.epoch for message in sent_messages] == [1, 2]


async def test_a_record_that_cannot_be_stored_is_not_kept_in_memory(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A promise, or an epoch, that is not durable must not be acted on."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "store", full)
    with pytest.raises(OSError):
        await worker.context.store(held=OwnershipRecord(2, Claim.OWNER))
    assert worker.context.record.held == OwnershipRecord(1, Claim.OWNER)


async def test_crash_counts_survive_the_agents_own_death(worker: Worker, tmp_path: Path) -> None:
    worker._reconciler._started_at = 1e12  # just now, whatever the clock says
    worker._reconciler.note_crash("test")
    worker._reconciler.note_crash("test")
    await worker._reconciler._count_crashes()
    assert Journal(tmp_path / "journal").load_one("vm-a").crashes == 2


async def reboots_asked(worker: Worker, run_state: str = "running") -> None:
    """Let a worker do the next steps of a VM that was asked to reboot once; its guest agent takes requests."""
    machine = Mock(guest_listens=True, hardware=None, execute=AsyncMock(), status=AsyncMock(return_value=run_state))
    machine.guest.shut_down = AsyncMock()
    worker._reconciler._machine = machine
    asked = assigned(Restart.ON_FAILURE)
    worker.context.assignment = msgspec.structs.replace(asked, spec=msgspec.structs.replace(asked.spec, reboots=1))
    now = worker._services.clock.monotonic()
    reconciler, assignment = worker._reconciler, worker.context.assigned()
    await reconciler._look_at_requests(assignment.spec, run_state, now)
    situation = reconciler._requests.situation(run_state, worker.context.record, now)
    step = decide(assignment.spec, situation)
    if step is not Step.NOTHING:
        await reconciler._do(step, assignment, run_state, now)


async def test_a_reboot_outlives_the_agent_that_asked_the_guest(worker: Worker, tmp_path: Path) -> None:
    await reboots_asked(worker)
    journal = Journal(tmp_path / "journal")
    again = Worker("vm-a", journal.load_one("vm-a"), services_in(tmp_path))
    await reboots_asked(again)
    again._reconciler._machine.guest.shut_down.assert_not_called()  # type: ignore[attr-defined]
    assert again._reconciler.reboots, "it may do so yet"
    assert again.context.record.reboots == 0
    again._reconciler.on_event("RESET")
    await reboots_asked(again)
    remembered = journal.load_one("vm-a")
    assert (remembered.reboots, remembered.anew_asked) == (1, None)


async def test_a_vm_that_has_rebooted_goes_on_though_that_can_t_be_written_down(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reboots_asked(worker)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "store", full)
    worker._reconciler.on_event("RESET")
    await reboots_asked(worker)
    assert (worker.context.record.reboots, worker.context.record.anew_asked) == (1, None)
    worker._reconciler._machine.execute.assert_not_called()  # type: ignore[attr-defined]


async def test_a_guest_that_ignored_a_reboot_is_reset_by_a_later_agent(worker: Worker, tmp_path: Path) -> None:
    await reboots_asked(worker)
    journal = Journal(tmp_path / "journal")
    long_ago = msgspec.structs.replace(journal.load_one("vm-a"), anew_asked=AnewAsked(1, 1.0))
    again = Worker("vm-a", long_ago, services_in(tmp_path))
    for look in range(3):
        await reboots_asked(again)
        execute = again._reconciler._machine.execute
        done = [call.args for call in execute.await_args_list]  # type: ignore[attr-defined]
        assert done == ([("system_reset",)] if look == 0 else []), "once"
    assert journal.load_one("vm-a").reboots == 1


async def test_a_vm_leaves_once_it_has_rebooted(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    await reboots_asked(worker)
    leaves, stays = AsyncMock(return_value=True), AsyncMock(return_value=0.0)
    monkeypatch.setattr(worker._source, "step", leaves)
    monkeypatch.setattr(worker._reconciler, "step", stays)
    task = wire.Task("mig-a", Side.SOURCE, MigrationKind.LIVE, "host-b", 1, "127.0.0.1:1")
    statement = wire.Statement("vm-a", Order(OrderKind.OWN, 1), worker.context.assigned(), task)
    await worker._run(statement)
    assert (leaves.await_count, stays.await_count) == (0, 1)
    worker._reconciler.on_event("RESET")
    await worker._run(statement)
    assert (leaves.await_count, stays.await_count) == (1, 1)


@pytest.mark.parametrize(
    ("restart", "halted"), [(Restart.NEVER, 3), (Restart.ON_FAILURE, None), (Restart.ALWAYS, None)]
)
async def test_a_crashed_vm_stays_off_only_where_its_spec_says_so(
    worker: Worker, restart: Restart, halted: int | None
) -> None:
    worker.context.assignment = assigned(restart)
    worker._reconciler.note_crash("test")
    await worker._reconciler._count_crashes()
    assert (worker.context.record.halted_at_start, worker.context.record.crashes) == (halted, 1)


async def test_a_worker_that_lost_its_record_says_so_and_names_the_command_that_helps(tmp_path: Path) -> None:
    sent_messages.clear()
    worker = Worker("vm-a", Record(damaged=True), services_in(tmp_path))
    worker.set_desired(wire.Statement("vm-a", Order(OrderKind.OWN, 3), assigned(Restart.NEVER)))
    await worker._step()
    report = next(message for message in sent_messages if isinstance(message, wire.Observed))
    assert report.epoch == 3 and report.status.record_lost and report.status.state is VmState.FAILED
    assert report.status.reason.endswith("novacron vm start a")


def contradicted() -> list[wire.Contradicted]:
    return [message for message in sent_messages if isinstance(message, wire.Contradicted)]


async def test_what_a_vm_is_outlives_the_agent_that_was_told(worker: Worker, tmp_path: Path) -> None:
    worker.set_desired(wire.Statement("vm-a", Order(OrderKind.OWN, 1), assigned(Restart.NEVER)))
    await worker._obey(worker.context.statement)  # type: ignore[arg-type]
    again = Worker("vm-a", Journal(tmp_path / "journal").load_one("vm-a"), services_in(tmp_path))
    again.contradict()
    (said,) = contradicted()
    assert said.record == OwnershipRecord(1, Claim.OWNER)
    described = msgspec.convert(said.description, VmDescription)
    assert (described.name, described.project, described.spec) == ("a", "default", assigned(Restart.NEVER).spec)
    assert again.context.image_names() == {"tiny"}, "its image is in use, whatever the server knows"


async def test_what_a_vm_is_need_not_fit_on_a_full_disk(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    statement = wire.Statement("vm-a", Order(OrderKind.OWN, 1), assigned(Restart.NEVER))
    monkeypatch.setattr(Journal, "store", full)
    assert await worker._obey(statement) is OrderVerdict.RUN


@pytest.mark.parametrize(
    ("held", "order"),
    [
        (OwnershipRecord(4, Claim.OWNER), Order(OrderKind.OWN, 3)),
        (OwnershipRecord(4, Claim.OWNER), Order(OrderKind.GONE, 3)),
        (OwnershipRecord(4, Claim.NONE), Order(OrderKind.OWN, 3)),
        (OwnershipRecord(4, Claim.NONE), Order(OrderKind.OWN, 4)),
        (OwnershipRecord(4, Claim.RELEASED), Order(OrderKind.OWN, 4)),
    ],
)
async def test_an_order_that_contradicts_what_the_node_knows_is_answered_once_a_link(
    tmp_path: Path, held: OwnershipRecord, order: Order
) -> None:
    sent_messages.clear()
    worker = Worker("vm-a", Record(held), services_in(tmp_path))
    worker.set_desired(wire.Statement("vm-a", order, assigned(Restart.NEVER)))
    await worker._step()
    await worker._step()
    assert [said.record for said in contradicted()] == [held]
    worker.resync()
    await worker._step()
    assert len(contradicted()) == 2


@pytest.mark.parametrize("held", [OwnershipRecord(3, Claim.OWNER), OwnershipRecord(2, Claim.OWNER), OwnershipRecord()])
async def test_a_vote_binds_an_agent_whose_state_folder_was_put_back_from_before_it(
    held: OwnershipRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No QEMU runs any more, and the journal says that the node owns the VM: the target may run it at any moment."""
    sent_messages.clear()
    worker = Worker("vm-a", Record(held), services_in(tmp_path))
    started = AsyncMock()
    monkeypatch.setattr(worker._reconciler, "step", started)
    task = wire.Task("mig-a", Side.SOURCE, MigrationKind.LIVE, "host-b", 3, endpoint=None, voted=True)
    worker.set_desired(wire.Statement("vm-a", Order(OrderKind.OWN, 3), assigned(Restart.ALWAYS), task))
    await worker._step()
    started.assert_not_called()
    assert Journal(tmp_path / "journal").load_one("vm-a").held == OwnershipRecord(3, Claim.RELEASED)
    assert sent_messages == [wire.Voted("mig-a", Side.SOURCE, 3)]
    worker.set_desired(wire.Statement("vm-a", Order(OrderKind.GONE, 4)))
    await worker._step()
    assert sent_messages[-1] == wire.Removed("vm-a"), "the later epoch says whose it is"


async def test_a_source_that_was_made_to_remove_the_vm_lets_its_migration_end(tmp_path: Path) -> None:
    """It runs the VM at this epoch no more, which is all that its vote says: the target may have everything."""
    sent_messages.clear()
    worker = Worker("vm-a", Record(OwnershipRecord(3, Claim.NONE)), services_in(tmp_path))
    task = wire.Task("mig-a", Side.SOURCE, MigrationKind.LIVE, "host-b", 3, endpoint=None)
    worker.set_desired(wire.Statement("vm-a", Order(OrderKind.OWN, 3), assigned(Restart.ALWAYS), task))
    await worker._step()
    assert sent_messages == [wire.Voted("mig-a", Side.SOURCE, 3)]


async def test_an_older_state_folder_runs_nothing_that_has_moved_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker("vm-a", Record(OwnershipRecord(3, Claim.OWNER)), services_in(tmp_path))
    started = AsyncMock()
    monkeypatch.setattr(worker._reconciler, "step", started)
    await worker._step()  # the server has not said anything yet
    worker.set_desired(wire.Statement("vm-a", Order(OrderKind.GONE, 6)))
    await worker._step()
    started.assert_not_called()
    assert Journal(tmp_path / "journal").load_one("vm-a").held == OwnershipRecord(6, Claim.NONE)


def with_disk(directory: Path, claim: Claim) -> Worker:
    """Return the worker of a VM of which this node has a disk, and remembers this claim."""
    (directory / "vms" / "vm-a").mkdir(parents=True)
    (directory / "vms" / "vm-a" / DISK_LAYER).write_bytes(b"layer")
    return Worker("vm-a", Record(OwnershipRecord(2, claim)), services_in(directory))


@pytest.mark.parametrize(("claim", "kept"), [(Claim.OWNER, True), (Claim.RELEASED, True), (Claim.INCOMING, False)])
@pytest.mark.parametrize("kind", [OrderKind.GONE, OrderKind.RECEIVE])
async def test_only_a_disk_that_a_vm_ran_with_is_kept_for_its_replica(
    tmp_path: Path, claim: Claim, kept: bool, kind: OrderKind
) -> None:
    """What a move that failed has brought of the disk must not take the place of the replica's points."""
    worker = with_disk(tmp_path, claim)
    worker.set_desired(wire.Statement("vm-a", Order(kind, 3), None))
    await worker._step()
    assert worker.context.record.held == OwnershipRecord(3, Claim.NONE)
    assert worker._services.replicas.former("vm-a").exists() is kept
    assert not (tmp_path / "vms" / "vm-a").exists()


async def test_a_vm_is_given_up_though_its_disk_cannot_be_kept_for_its_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    sent_messages.clear()
    worker = with_disk(tmp_path, Claim.OWNER)
    monkeypatch.setattr(worker._services.replicas, "keep_former", full)
    worker.set_desired(wire.Statement("vm-a", Order(OrderKind.GONE, 3), None))
    await worker._step()
    assert sent_messages == [wire.Removed("vm-a")] and not (tmp_path / "vms" / "vm-a").exists()
