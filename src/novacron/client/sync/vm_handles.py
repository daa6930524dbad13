# Made of aio/vm_handles.py by script/generate: change that, and run it.
"""VMs, their snapshots, migrations and exports, as objects with methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Self

from novacron.client.protocol import quoted
from novacron.client.sync.handles import WAIT_S, Findable, Followed, Listed, Removable, Watched
from novacron.client.typed import (
    Export,
    Migration,
    MigrationPolicy,
    Snapshot,
    Vm,
    VmSpec,
    VmState,
    VmStatus,
)
from novacron.client.values import GuestResult

if TYPE_CHECKING:
    from typing import Unpack

    from novacron.client.bodies import CloneVmBody, ConfigureVmBody, CreateVmBody, ScheduleMigrationBody


class MigrationHandle(Watched[Migration]):
    """A migration of a VM."""

    @property
    def id(self) -> str:
        return self.object.id

    def abort(self) -> Self:
        """Ask for its end; the VM stays where it is."""
        return self._take(self._act("abort"))

    def wait_until_finished(self, timeout_s: float = WAIT_S) -> Self:
        """Wait until it has succeeded or failed: ``object.phase`` says which. Raises TimeoutError."""
        return self.wait_until(lambda now: now.finished_at is not None, timeout_s)


class SnapshotHandle(Watched[Snapshot]):
    """A snapshot of a VM."""

    @property
    def name(self) -> str:
        return self.object.name

    def wait_until_done(self, timeout_s: float = WAIT_S) -> Self:
        """Wait until it is ready, or has failed: ``object.phase`` says which. Raises TimeoutError."""
        return self.wait_until(lambda now: now.phase in ("ready", "failed"), timeout_s)

    def revert(self) -> Self:
        """Begin to revert the VM to it; it is ready again once that is done."""
        return self._take(self._connection.revert_snapshot(self.object.vm, self.object.name))

    def delete(self) -> Self:
        """Begin to delete it; ``wait_until_gone`` waits until it is gone."""
        return self._take(self._connection.delete_snapshot(self.object.vm, self.object.name))


class ExportHandle(Watched[Export], Removable[Export]):
    """A VM's disk, packed to be fetched."""

    @property
    def id(self) -> str:
        return self.object.id


class VmHandle(Watched[Vm], Removable[Vm]):
    """A VM."""

    @property
    def id(self) -> str:
        return self.object.id

    @property
    def name(self) -> str:
        return self.object.name

    @property
    def spec(self) -> VmSpec:
        return self.object.spec

    @property
    def status(self) -> VmStatus:
        return self.object.status

    @property
    def state(self) -> VmState:
        return self.object.status.state

    @property
    def node(self) -> str | None:
        """Where it runs or is to run; None: not placed yet."""
        return self.object.node

    def start(self) -> Self:
        return self._take(self._act("start"))

    def stop(self, timeout_s: int | None = None) -> Self:
        """Ask the guest to power off, and force it off after ``timeout_s``; 0: at once."""
        return self._take(self._act("stop", {"timeout_s": timeout_s}))

    def pause(self) -> Self:
        return self._take(self._act("pause"))

    def resume(self) -> Self:
        return self._take(self._act("resume"))

    def reboot(self) -> Self:
        """Ask the guest to restart."""
        return self._take(self._act("reboot"))

    def reset(self) -> Self:
        """Restart it as its reset button would."""
        return self._take(self._act("reset"))

    def configure(self, *, if_unchanged: bool = False, **changes: Unpack[ConfigureVmBody]) -> Self:
        """Change fields; None removes a limit. With ``if_unchanged`` only if nobody has changed the VM since it was
        last seen. Raises StaleRevisionError."""
        return self._change(changes, if_unchanged)

    def wait_for(self, state: VmState, timeout_s: float = WAIT_S) -> Self:
        """Wait until it is in a state. Raises TimeoutError, which says what it waits for."""
        return self.wait_until(lambda vm: vm.status.state is state, timeout_s)

    def migrate(self, target: str | None = None, policy: MigrationPolicy | None = None) -> MigrationHandle:
        """Begin to move it to a node, by default to the best one."""
        body = self._act("migrate", {"target": target, "policy": policy})
        return MigrationHandle(self._connection, Migration, body)

    def schedule_migration(self, **when: Unpack[ScheduleMigrationBody]) -> Self:
        """Have it migrated at a later time; ``deadline``: when the VM usually does least, to be over by then."""
        return self._take(self._act("schedule-migration", when))

    def unschedule_migration(self) -> Self:
        """Have it not migrated at the time that was set."""
        return self._take(self._act("unschedule-migration"))

    def clone(self, **fields: Unpack[CloneVmBody]) -> VmHandle:
        return VmHandle(self._connection, Vm, self._act("clone", fields))

    def export(self) -> ExportHandle:
        """Begin to pack its disk for ``novacron.client.archive``."""
        return ExportHandle(self._connection, Export, self._act("export"))

    def snapshot(self, name: str, memory: bool = False, quiesce: bool = False) -> SnapshotHandle:
        """Begin to take a snapshot."""
        body = self._connection.create_snapshot(self.id, name, memory, quiesce)
        return SnapshotHandle(self._connection, Snapshot, body)

    def snapshots(self) -> Iterator[SnapshotHandle]:
        for body in self._connection.list(f"vms/{quoted(self.id)}/snapshots"):
            yield SnapshotHandle(self._connection, Snapshot, body)

    def run(
        self, *arguments: str, environment: Mapping[str, str] | None = None, input: bytes = b"",
        timeout_s: float = 600.0,
    ) -> GuestResult:  # fmt: skip
        """Run a program in the guest, without a shell, through its guest agent. Raises TimeoutError."""
        ended = self._connection.run_in_guest(
            self.id, arguments, environment=environment, input=input, timeout_s=timeout_s
        )
        return GuestResult(
            ended["exit_code"], ended["signal"], ended["stdout"], ended["stderr"], bool(ended["truncated"])
        )

    def console_log(self) -> bytes:
        """Return the end of what it printed on its serial line. It comes from the guest: it may hold anything."""
        return self._connection.console_log(self.id)

    def screenshot(self) -> bytes:
        """Return what its display shows, as a PNG file."""
        return self._connection.screenshot(self.id)


class ExportCollection(
    Listed[Export, ExportHandle],
    Findable[Export, ExportHandle],
    Followed[Export, ExportHandle],
):
    """All exports."""

    _type, _handle = Export, ExportHandle


class VmCollection(Findable[Vm, VmHandle], Followed[Vm, VmHandle]):
    """All VMs that the caller may see."""

    _type, _handle = Vm, VmHandle

    def create(self, *, idempotency_key: str | None = None, **fields: Unpack[CreateVmBody]) -> VmHandle:
        """Create a VM. With the same ``idempotency_key`` within a day the same VM is returned, and none is created."""
        return self._create(fields, idempotency_key)

    def list(
        self, *, state: VmState | None = None, node: str | None = None, image: str | None = None,
        name: str | None = None, limit: int | None = None, sort: str | None = None,
    ) -> Iterator[VmHandle]:  # fmt: skip
        """Yield VMs, page by page; ``name`` may end with ``*``."""
        return self._list(limit, state=state, node=node, image=image, name=name, sort=sort)


class MigrationCollection(Findable[Migration, MigrationHandle], Followed[Migration, MigrationHandle]):
    """All migrations."""

    _type, _handle = Migration, MigrationHandle

    def list(
        self, *, vm: str | None = None, phase: str | None = None, limit: int | None = None, sort: str | None = None
    ) -> Iterator[MigrationHandle]:
        return self._list(limit, vm=vm, phase=phase, sort=sort)
