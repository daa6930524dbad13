"""What earlier agents left running on this host, settled before an agent starts or accepts anything.

An agent whose state folder was moved away, copied, restored or lost does not know its own QEMUs by a path. They are
found by what they are (``novacron.qemu.running``): each is kept, taken over, ended, left to its own agent, or keeps
this one from starting.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import msgspec

from novacron.agent import identity as identities
from novacron.agent.host import presence, remnants
from novacron.agent.host.instances import instance_of
from novacron.agent.host.remnants import Remnant, RemnantKind, RemnantSituation, is_ownerless
from novacron.agent.settings import AgentSettings
from novacron.agent.vm.journal import Journal, Record, peek
from novacron.model.errors import InvalidInput
from novacron.model.ownership import Claim
from novacron.net.tap import NetworkFailed
from novacron.qemu import process, running
from novacron.qemu.running import RunningQemu
from novacron.telemetry import logs

log = logs.get(__name__)

VOLUMES, VMS, JOURNAL = "volumes", "vms", "journal"
"""Within a state folder."""
NAMED_MAX = 5


class Fate(StrEnum):
    """What becomes of a QEMU that an agent finds when it starts."""

    KEEP = "keep"
    """It runs in this agent's state folder: its VM's worker adopts it."""
    TAKE_OVER = "take over"
    """It is this node's, and its files can be moved into the state folder while it runs."""
    END = "end"
    """Nobody can ask it anything any more, and nobody else will end it."""
    LEAVE = "leave"
    """It is another agent's, which lives or may come back, or another installation's."""
    REFUSE = "refuse"
    """It is this node's, and uses other files than those in the state folder: the agent must not start."""


class Leftover(msgspec.Struct, frozen=True):
    """A QEMU on this host, as far as its fate depends on it."""

    here: bool = False
    """It runs in this agent's state folder."""
    same_installation: bool = True
    same_node: bool = True
    removed: bool = False
    """Its VM's directory has been removed."""
    movable: bool = False
    """Its files can be moved here, where nothing of its VM is."""
    agent_lives: bool = False
    """The agent that it belongs to works."""
    agent_may_return: bool = False
    """The state folder of the agent that it belongs to is where it was."""


def decide(leftover: Leftover) -> Fate:
    """Return what becomes of a QEMU. Pure."""
    if leftover.here:
        return Fate.KEEP
    if not leftover.same_installation:
        return Fate.LEAVE
    if leftover.same_node:
        if leftover.removed:
            return Fate.END
        return Fate.TAKE_OVER if leftover.movable else Fate.REFUSE
    return Fate.LEAVE if leftover.agent_lives or leftover.agent_may_return else Fate.END


class StillRunning(InvalidInput):
    """QEMUs of this node run with files that are not in the agent's state folder."""

    def __init__(self, settings: AgentSettings, qemus: list[RunningQemu]) -> None:
        shown = ", ".join(f"{qemu.vm} (process {qemu.pid}, in {qemu.directory})" for qemu in qemus[:NAMED_MAX])
        more = f" and {len(qemus) - NAMED_MAX} more" if len(qemus) > NAMED_MAX else ""
        folders = sorted({str(_state_dir(qemu).parent) for qemu in qemus})
        super().__init__(
            f"VMs of this node run with other files than those in {settings.state_dir.parent}: {shown}{more}",
            field="state-dir",
            hint=f"start the agent with --state-dir {folders[0]}, or stop those VMs before using another directory",
        )


def _state_dir(qemu: RunningQemu) -> Path:
    """Return the state folder that a QEMU runs in: where that is now."""
    assert qemu.directory is not None
    return qemu.directory.parent.parent


def _owner_in(state_dir: Path) -> str:
    """Return whose state a folder holds, by its certificate; empty: nobody's."""
    try:
        identity = identities.load(state_dir / "identity")
        return "" if identity is None else identity.owner
    except (OSError, ValueError, KeyError):
        return ""


def owner_of(qemu: RunningQemu) -> str:
    """Return whose a QEMU is: by the folder that it runs in, as that node may have been renamed, or by its marks."""
    return (_owner_in(_state_dir(qemu)) if qemu.directory is not None else "") or qemu.owner


def without_agent(qemus: list[RunningQemu]) -> RunningQemu | None:
    """Return the first of these QEMUs that is a node's whose agent does not work on this host."""
    for qemu in qemus:
        owner = owner_of(qemu)
        if owner and not presence.lives(owner):
            return qemu
    return None


def _record_of_both(journal: Journal, here: Path, there: Path, vm: str) -> Record | None:
    """Return what to remember of a VM whose QEMU runs in another folder; None: what is remembered here already.

    Either folder may be an older copy, so the later epoch counts. What the earlier agent has promised may be lost with
    its journal: then nothing is done with the VM for now.
    """
    theirs, own = peek(there, vm), peek(here, vm)
    if own is None:
        return None if journal.has(vm) else theirs or Record(damaged=True)
    if theirs is not None:
        return theirs if theirs.held.epoch > own.held.epoch else None
    return Record(damaged=True) if own.held.claim is Claim.NONE else None


class InUse(NamedTuple):
    """What the QEMUs on this host use: VMs, and the state folders that they were started from."""

    vms: frozenset[str]
    state_dirs: frozenset[str]

    @classmethod
    def by(cls, qemus: list[RunningQemu]) -> InUse:
        """Return what these use."""
        return cls(frozenset(qemu.vm for qemu in qemus), frozenset(qemu.state_dir for qemu in qemus))


def abandoned() -> list[Remnant]:
    """Return what agents that are gone for good have left beside QEMUs. Raises NetworkFailed, OSError."""
    in_use = InUse.by(running.running())
    return [
        remnant
        for remnant in remnants.find()
        if remnant.by is not None
        and remnant.vm not in in_use.vms
        and remnant.by.state_dir not in in_use.state_dirs
        and not presence.lives(remnant.by.owner)
        and _owner_in(Path(remnant.by.state_dir)) != remnant.by.owner
        and remnants.is_there(remnant)
    ]


class Leftovers:
    """Those on this host, for an agent that has its presence and its state folder, and has not begun to work."""

    def __init__(
        self,
        settings: AgentSettings,
        look: Callable[[], list[RunningQemu]] = running.running,
        files_of: Callable[[int], list[Path]] = running.files_of,
        quit: Callable[[int], Awaitable[None]] = process.quit,
    ) -> None:
        self._settings = settings
        self._look, self._files_of, self._quit = look, files_of, quit

    def check(self) -> list[tuple[RunningQemu, Fate]]:
        """Return what becomes of each; nothing is done yet. Raises StillRunning, OSError."""
        fates = [(qemu, decide(self.describe(qemu))) for qemu in self._look()]
        refused = [qemu for qemu, fate in fates if fate is Fate.REFUSE]
        if refused:
            raise StillRunning(self._settings, refused)
        return fates

    async def settle(self) -> None:
        """Settle them. Raises StillRunning, with which nothing was changed; OSError."""
        for qemu, fate in self.check():
            if fate is Fate.KEEP:
                continue
            log.warning(
                "a QEMU of an earlier agent is on this host",
                vm=qemu.vm, pid=qemu.pid, directory=str(qemu.directory), owner=owner_of(qemu), fate=fate,
            )  # fmt: skip
            if fate is Fate.TAKE_OVER:
                try:
                    self._take_over(qemu)
                except OSError as error:  # another mount of the same file system, for one
                    log.error("a VM's files can't be moved here", vm=qemu.vm, error=str(error))
                    raise StillRunning(self._settings, [qemu]) from error
            elif fate is Fate.END:
                await self._quit(qemu.pid)

    def remove_remnants(self) -> None:
        """Remove what earlier agents left beside QEMUs, where nobody else has a claim on it. To be called once QEMUs
        are settled. What can't be removed is in nobody's way: it is logged."""
        if not remnants.can_look():
            return
        try:
            remnants.note_instance(self._settings.state_dir, self._settings.owner)
            in_use = InUse.by(self._look())
            # Taps first: a network that has one stays.
            leftover = sorted(remnants.find(), key=lambda remnant: remnant.kind is RemnantKind.NETWORKS)
        except (NetworkFailed, OSError) as error:
            log.warning("what earlier agents left can't be looked at", error=str(error))
            return
        for remnant in leftover:
            if not is_ownerless(self.situation(remnant, in_use)):
                continue
            about = {"kind": remnant.kind, "name": remnant.name, "vm": remnant.vm, "by": remnant.by}
            try:
                was_there = remnants.is_there(remnant)
                remnants.remove(remnant)
                if was_there:  # else there was its note alone
                    log.warning("what an earlier agent left was removed", **about)
            except (NetworkFailed, OSError) as error:
                log.warning("what an earlier agent left can't be removed", **about, error=str(error))

    def situation(self, remnant: Remnant, in_use: InUse) -> RemnantSituation:
        """Return what there is to know of a remnant."""
        settings, by = self._settings, remnant.by
        if by is None:
            return RemnantSituation(known=False)
        same_node = by.owner == settings.owner
        same_folder = remnant.instance == instance_of(settings.state_dir)
        if remnant.kind is RemnantKind.NETWORKS:
            needed = same_folder or by.state_dir in in_use.state_dirs
        else:
            needed = remnant.vm in in_use.vms or (same_folder and (settings.vms_dir / remnant.vm).exists())
        return RemnantSituation(
            same_installation=by.owner.partition("/")[0] == settings.owner.partition("/")[0],
            same_node=same_node,
            same_folder=same_folder,
            needed=needed,
            agent_lives=not same_node and presence.lives(by.owner),
            agent_may_return=not same_node and _owner_in(Path(by.state_dir)) == by.owner,
        )

    def describe(self, qemu: RunningQemu) -> Leftover:
        """Return what there is to know of a QEMU."""
        own = self._settings.owner
        owner = owner_of(qemu)
        same_node = owner == own
        return Leftover(
            here=qemu.directory == (self._settings.vms_dir / qemu.vm).resolve(),
            same_installation=bool(owner) and owner.partition("/")[0] == own.partition("/")[0],
            same_node=same_node,
            removed=qemu.directory is None,
            movable=same_node and qemu.directory is not None and self._is_movable(qemu),
            agent_lives=bool(owner) and not same_node and presence.lives(owner),
            agent_may_return=bool(qemu.state_dir) and _owner_in(Path(qemu.state_dir)) == owner,
        )

    def _is_movable(self, qemu: RunningQemu) -> bool:
        assert qemu.directory is not None
        moves = [(qemu.directory, self._settings.vms_dir / qemu.vm), *self._volumes_of(qemu)]
        if qemu.directory.name != qemu.vm or qemu.directory.parent.name != VMS:
            return False
        if Path(qemu.state_dir) != self._settings.state_dir.resolve():
            return False  # the namespaces of its networks are named after that folder
        ours = self._settings.state_dir.stat()
        try:
            # What a guest that broke out has made itself is not taken for a VM's directory.
            is_agents = qemu.directory.stat().st_uid == ours.st_uid
            return is_agents and all(
                source.stat().st_dev == ours.st_dev and not target.exists() for source, target in moves
            )
        except OSError:  # another file system is mounted over it, or it is removed at this moment
            return False

    def _volumes_of(self, qemu: RunningQemu) -> list[tuple[Path, Path]]:
        """Return the volumes of the state folder that a QEMU uses, and where they belong here."""
        theirs, here = _state_dir(qemu) / VOLUMES, self._settings.volumes_dir
        used = {path for path in self._files_of(qemu.pid) if path.parent == theirs}
        return [(path, here / path.name) for path in sorted(used) if path.parent != here.resolve()]

    def _take_over(self, qemu: RunningQemu) -> None:
        """Move a VM's files here while its QEMU uses them. The directory goes last: until then it is done again."""
        assert qemu.directory is not None
        settings = self._settings
        for directory in (settings.vms_dir, settings.volumes_dir, settings.journal_dir):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        journal = Journal(settings.journal_dir)
        if (record := _record_of_both(journal, settings.journal_dir, _state_dir(qemu) / JOURNAL, qemu.vm)) is not None:
            journal.store(qemu.vm, record)
        for source, target in self._volumes_of(qemu):
            source.rename(target)
        qemu.directory.rename(settings.vms_dir / qemu.vm)
