"""What becomes of QEMUs that earlier agents left on this host, and one agent of a node at a time."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.platform import until
from novacron import pki
from novacron.agent import identity as identities
from novacron.agent.host import presence
from novacron.agent.host.networks import NodeNetworks
from novacron.agent.host.passthrough import Passthrough
from novacron.agent.host.presence import AgentLives, Presence
from novacron.agent.host.remnants import RemnantSituation, is_ownerless
from novacron.agent.settings import AgentSettings
from novacron.agent.vm.hypervisor import MachineFailed
from novacron.agent.vm.journal import Journal, Record
from novacron.agent.vm.leftovers import Fate, Leftover, Leftovers, StillRunning, decide
from novacron.agent.vm.machine import QemuHypervisor
from novacron.model.ownership import Claim, OwnershipRecord
from novacron.qemu import running
from novacron.qemu.command import name_argument, uuid_argument

VM = "vm-leftover"
SLEEP = "import time; time.sleep(120)"


def test_no_qemu_of_this_node_is_left_to_run_beside_its_agent() -> None:
    """In every situation: it is adopted, ended, or the agent does not start."""
    for here, removed, movable, lives, returns in itertools.product((False, True), repeat=5):
        fate = decide(Leftover(here, True, True, removed, movable, lives, returns))
        assert fate is not Fate.LEAVE
        assert (fate is Fate.KEEP) == here
        if fate is Fate.TAKE_OVER:
            assert movable and not removed


def test_a_qemu_of_another_agent_is_never_touched_while_that_lives_or_may_come_back() -> None:
    for removed, movable, lives, returns in itertools.product((False, True), repeat=4):
        fate = decide(Leftover(False, True, False, removed, movable, lives, returns))
        assert fate is (Fate.LEAVE if lives or returns else Fate.END)


def test_a_qemu_of_another_installation_is_never_touched() -> None:
    for node, removed, movable, lives, returns in itertools.product((False, True), repeat=5):
        assert decide(Leftover(False, False, node, removed, movable, lives, returns)) is Fate.LEAVE


def test_only_what_nobody_else_has_a_claim_on_is_removed_from_a_host() -> None:
    for known, installation, node, folder, needed, lives, returns in itertools.product((False, True), repeat=7):
        situation = RemnantSituation(known, installation, node, folder, needed, lives, returns)
        if is_ownerless(situation):
            assert known and installation and not needed
            assert node or not (lives or returns)
    assert is_ownerless(RemnantSituation(same_node=False, same_folder=False)), "its agent is gone for good"
    assert is_ownerless(RemnantSituation(agent_may_return=True)), "it is this node's, and its VM is not here"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> pki.Authority:
    return pki.Authority.open(tmp_path_factory.mktemp("ca"))


def make_state(path: Path, authority: pki.Authority, name: str = "host-a") -> AgentSettings:
    """Make the state folder of a node that has joined, and return its agent's settings."""
    directory = path / "identity"
    directory.mkdir(parents=True)
    key = pki.new_key()
    (directory / "ca.crt").write_bytes(authority.pem)
    (directory / "node.key").write_bytes(pki.key_pem(key))
    (directory / "node.crt").write_bytes(authority.issue_node(pki.certificate_request(key, name), name))
    (directory / "identity.json").write_text('{"link_url": "wss://localhost:1"}')
    identity = identities.load(directory)
    assert identity is not None
    return AgentSettings(path, path / "images", name, owner=identity.owner)


class Program:
    """A process that looks like a VM's QEMU."""

    def __init__(self, settings: AgentSettings, vm: str = VM) -> None:
        self.directory = settings.vms_dir / vm
        self.directory.mkdir(parents=True)
        settings.volumes_dir.mkdir()
        self.volume = settings.volumes_dir / "vol-a.raw"
        self.volume.touch()
        with self.volume.open("rb") as volume:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SLEEP, "-name", name_argument(vm), "-uuid", uuid_argument(vm)],
                cwd=self.directory,
                stdin=volume,
                env={**os.environ, **running.marks(settings.owner, settings.state_dir)},
            )
        # The kernel closes what is closed on execution before it sets the new command line.
        until(lambda: running.of_vm(vm) != [], "the process has its command line")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


@pytest.fixture
def left(tmp_path: Path, authority: pki.Authority) -> Iterator[Program]:
    """The QEMU of an agent in ``tmp_path / "state"`` that is gone."""
    program = Program(make_state(tmp_path / "state", authority))
    yield program
    program.process.kill()
    program.process.wait()


async def settle(settings: AgentSettings) -> None:
    """Settle what is left of the test's VM, whatever else runs on this machine."""
    await Leftovers(settings, lambda: running.of_vm(VM)).settle()


async def test_a_node_that_joins_again_takes_over_a_vm_whose_state_folder_was_moved_away(
    tmp_path: Path, authority: pki.Authority, left: Program
) -> None:
    away = tmp_path / "away"
    (tmp_path / "state").rename(away)
    Journal(away / "journal").store(VM, Record(OwnershipRecord(7, Claim.RELEASED)))
    settings = make_state(tmp_path / "state", authority)
    await settle(settings)
    assert left.alive
    found = running.find(settings.vms_dir / VM, settings.owner)
    assert found is not None and found.directory == (settings.vms_dir / VM).resolve()
    assert (settings.volumes_dir / "vol-a.raw").exists() and not (away / "volumes" / "vol-a.raw").exists()
    assert Journal(settings.journal_dir).load_one(VM).held == OwnershipRecord(7, Claim.RELEASED), (
        "its promise goes with it"
    )
    await settle(settings)
    assert left.alive, "looking again changes nothing"


async def test_a_promise_that_may_be_lost_with_its_journal_is_not_forgotten(
    tmp_path: Path, authority: pki.Authority, left: Program
) -> None:
    (tmp_path / "state").rename(tmp_path / "away")
    settings = make_state(tmp_path / "state", authority)
    await settle(settings)
    assert left.alive and Journal(settings.journal_dir).load_one(VM).damaged


NOTHING_KNOWN, OWNED = OwnershipRecord(1, Claim.NONE), OwnershipRecord(6, Claim.OWNER)


@pytest.mark.parametrize(
    ("put_back", "moved_away", "counts"),
    [(NOTHING_KNOWN, OWNED, OWNED), (OWNED, NOTHING_KNOWN, OWNED), (OWNED, None, OWNED), (NOTHING_KNOWN, None, None)],
)
async def test_the_later_of_two_records_of_a_vm_that_runs_counts(
    tmp_path: Path, authority: pki.Authority, left: Program, put_back: OwnershipRecord,
    moved_away: OwnershipRecord | None, counts: OwnershipRecord | None,
) -> None:  # fmt: skip
    """A state folder was put back from a copy while a VM ran out of the one that was moved away. ``counts`` None: the
    record is damaged."""
    away = tmp_path / "away"
    (tmp_path / "state").rename(away)
    if moved_away is not None:
        Journal(away / "journal").store(VM, Record(moved_away))
    settings = make_state(tmp_path / "state", authority)
    Journal(settings.journal_dir).store(VM, Record(put_back))
    await settle(settings)
    record = Journal(settings.journal_dir).load_one(VM)
    assert left.alive and (record.damaged if counts is None else record.held == counts)


async def test_an_agent_with_a_copy_of_the_state_folder_does_not_start_beside_running_vms(
    tmp_path: Path, authority: pki.Authority, left: Program
) -> None:
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    settings = AgentSettings(tmp_path / "copy", tmp_path, "host-a", owner=left_owner(tmp_path / "state"))
    with pytest.raises(StillRunning, match=f"{VM} .process {left.process.pid}"):
        await settle(settings)
    assert left.alive and left.directory.exists()


async def test_a_node_that_joins_again_with_another_folder_does_not_start_beside_running_vms(
    tmp_path: Path, authority: pki.Authority, left: Program
) -> None:
    settings = make_state(tmp_path / "other", authority)
    with pytest.raises(StillRunning, match=f"--state-dir {tmp_path}"):
        await settle(settings)
    assert left.alive and left.directory.exists() and not settings.vms_dir.exists()


async def test_an_agent_with_an_older_state_folder_put_back_does_not_start_beside_running_vms(
    tmp_path: Path, authority: pki.Authority, left: Program
) -> None:
    shutil.copytree(tmp_path / "state", tmp_path / "backup")
    (tmp_path / "state").rename(tmp_path / "bad")
    (tmp_path / "backup").rename(tmp_path / "state")
    settings = AgentSettings(tmp_path / "state", tmp_path, "host-a", owner=left_owner(tmp_path / "state"))
    with pytest.raises(StillRunning, match="bad"):
        await settle(settings)
    assert left.alive


def left_owner(state: Path) -> str:
    identity = identities.load(state / "identity")
    assert identity is not None
    return identity.owner


async def test_a_qemu_whose_files_cannot_be_seen_any_more_stops_no_agent(
    tmp_path: Path, authority: pki.Authority, left: Program
) -> None:
    """As when a file system is mounted over the folder that it runs in."""
    settings = AgentSettings(tmp_path / "state", tmp_path, "host-a", owner=left_owner(tmp_path / "state"))
    seen = running.of_vm(VM)
    shutil.rmtree(left.directory)
    await Leftovers(settings, lambda: seen).settle()
    assert left.alive


async def test_a_qemu_whose_files_are_removed_is_ended(tmp_path: Path, authority: pki.Authority, left: Program) -> None:
    shutil.rmtree(tmp_path / "state")
    await settle(make_state(tmp_path / "state", authority))
    assert not left.alive


async def test_a_host_that_joins_under_another_name_ends_what_the_agent_before_left(
    tmp_path: Path, authority: pki.Authority, left: Program
) -> None:
    other = make_state(tmp_path / "other", authority, "host-b")
    await settle(other)
    assert left.alive, "its agent may come back: its state folder is there"
    held = Presence(left_owner(tmp_path / "state"))
    (tmp_path / "state").rename(tmp_path / "away")
    await settle(other)
    assert left.alive, "its agent lives"
    held.release()
    await settle(make_state(tmp_path / "elsewhere", pki.Authority.open(tmp_path / "other-ca"), "host-b"))
    assert left.alive, "it is another installation's"
    await settle(other)
    assert not left.alive


async def test_a_vm_does_not_start_beside_a_qemu_of_it_that_is_out_of_its_folder(
    tmp_path: Path, authority: pki.Authority, left: Program
) -> None:
    """Whatever put it there: before each start it is looked for, by what it is."""
    (tmp_path / "state").rename(tmp_path / "away")
    for name, says in (("host-a", "already runs this VM"), ("host-b", "whose agent is not running")):
        settings = make_state(tmp_path / name, authority, name)
        machine = QemuHypervisor(settings, NodeNetworks(settings), Passthrough()).machine(VM, lambda _name, _data: None)
        with pytest.raises(MachineFailed, match=says):
            await machine._check_alone(incoming=False)
        if name == "host-b":
            await machine._check_alone(incoming=True)
        assert (machine.pid == left.process.pid) == (name == "host-a"), "only its own node may end it"
        await machine.detach()
    with_agent = Presence(left_owner(tmp_path / "away"))
    try:
        await machine._check_alone(incoming=False)
    finally:
        with_agent.release()


async def test_a_qemu_of_a_node_that_was_renamed_is_its_agents(
    tmp_path: Path, authority: pki.Authority, left: Program
) -> None:
    """Its marks have the name from before; its folder has the new one."""
    renamed = make_state(tmp_path / "renamed", authority, "east-1")
    (tmp_path / "renamed" / "identity" / "node.crt").replace(tmp_path / "state" / "identity" / "node.crt")
    settings = make_state(tmp_path / "other", authority, "host-b")
    machine = QemuHypervisor(settings, NodeNetworks(settings), Passthrough()).machine(VM, lambda _name, _data: None)
    with pytest.raises(MachineFailed, match="of node east-1, whose agent is not running"):
        await machine._check_alone(incoming=False)
    agent = Presence(renamed.owner)
    try:
        await machine._check_alone(incoming=False)
        await settle(settings)
        assert left.alive
    finally:
        agent.release()


def test_one_agent_of_a_node_is_present_at_a_time(authority: pki.Authority) -> None:
    owner = identities.owner_of(authority.pem, "host-p")
    assert not presence.lives(owner)
    first = Presence(owner)
    assert presence.lives(owner)
    with pytest.raises(AgentLives, match=f"process {os.getpid()} is an agent of node host-p"):
        Presence(owner)
    Presence(f"{owner}-other").release()
    first.release()
    assert not presence.lives(owner)
    Presence(owner).release()


def test_an_agent_is_present_when_run_was_emptied(
    authority: pki.Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "directory", lambda: tmp_path / "agents")
    owner = identities.owner_of(authority.pem, "host-q")
    first = Presence(owner)
    for path in (tmp_path / "agents").iterdir():
        path.unlink()
    assert presence.lives(owner)
    with pytest.raises(AgentLives):
        Presence(owner)
    first.release()


def test_an_agent_is_present_in_other_network_namespaces(
    authority: pki.Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the kernel's list of sockets is another."""
    owner = identities.owner_of(authority.pem, "host-r")
    first = Presence(owner)
    monkeypatch.setattr(presence, "_address", lambda _: f"\0novacron-elsewhere-{os.getpid()}")
    assert presence.lives(owner)
    with pytest.raises(AgentLives):
        Presence(owner)
    first.release()
