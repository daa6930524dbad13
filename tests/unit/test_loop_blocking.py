"""What takes seconds with large files, or on a busy disk, is done beside the agent's loop: its leases hang on it."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args
from unittest.mock import AsyncMock, Mock

import msgspec
import pytest

from novacron import pki
from novacron.agent.backup_files import BackupFiles
from novacron.agent.backups import VmBackups
from novacron.agent.control.consoles import ConsoleRequests
from novacron.agent.control.dispatch import Dispatcher, Parts
from novacron.agent.control.peers import PeerWatch
from novacron.agent.control.queries import Subjects
from novacron.agent.control.transfers import Transfers
from novacron.agent.host import revoked_keys
from novacron.agent.host.clock import SystemClock
from novacron.agent.host.lease import NodeLease
from novacron.agent.host.networks import NodeNetworks
from novacron.agent.host.revoked_keys import RevokedKeys
from novacron.agent.host.volumes import NodeVolumes
from novacron.agent.images.exports import VmExports
from novacron.agent.images.imports import ImageImports
from novacron.agent.migration.services import NodeServices
from novacron.agent.replication.receiver import ReplicaReceivers
from novacron.agent.replication.sender import ReplicaSenders
from novacron.agent.repositories.prune import RepositoryPrunes
from novacron.agent.settings import AgentSettings
from novacron.agent.vm.context import VmContext
from novacron.agent.vm.directory import DISK_LAYER
from novacron.agent.vm.journal import Journal, Record
from novacron.agent.worker import Worker
from novacron.disk import convert, luks, overlay, qemu_img
from novacron.disk.images import LocalImage
from novacron.disk.qemu_img import Invocation
from novacron.dwcp.admittance import Admittance
from novacron.dwcp.listener import Listener
from novacron.model.backup import BackupPhase
from novacron.model.encryption import DataKey
from novacron.model.export import ExportPhase
from novacron.model.image import ImageFormat, ImportSpec, Source
from novacron.model.lease import POLL_S
from novacron.model.limits import LOCAL_POOL
from novacron.model.network import NetworkOnNode, NetworkSpec
from novacron.model.node import ImageInfo
from novacron.model.ownership import Order, OrderKind
from novacron.model.replica import ReplicaPhase
from novacron.model.vm import Power, VmSpec, VmState
from novacron.model.volume import VolumePhase
from novacron.wire import codec
from novacron.wire import messages as wire
from tests.support.agent import services_in
from tests.support.dwcp import Ends
from tests.support.loop_calls import on_loop
from tests.unit.test_replica_points import SIZE, image, layer
from tests.unit.test_simulated_machine import SimulatedMachine, until_reported
from tests.waiting import eventually, pause_async

__all__ = ["image", "on_loop"]


async def nothing() -> None: ...


def imports_of(directory: Path) -> ImageImports:
    settings = AgentSettings(directory / "state", directory / "images", "host-a", imports=directory / "in")
    for path in (settings.images_dir, directory / "in"):
        path.mkdir()
    return ImageImports(settings, lambda _: None, nothing)


@pytest.mark.parametrize("is_compressed", [False, True])
async def test_an_import_touches_large_files_beside_the_loop(
    tmp_path: Path, on_loop: list[str], is_compressed: bool
) -> None:
    imports, disk = imports_of(tmp_path), b"x" * 70_001
    (tmp_path / "in" / "disk").write_bytes(gzip.compress(disk) if is_compressed else disk)
    spec = ImportSpec("web", Source.PATH, "disk", format=ImageFormat.RAW)
    import_ = wire.ImportWanted("import-1", spec, disk_bytes=len(disk))
    scratch = imports._scratch(import_)
    scratch.mkdir()
    on_loop.clear()
    for name in ("source", "disk.raw", "unpacked"):  # of an earlier agent, killed on the way
        (scratch / name).write_bytes(b"old")
    await imports._import(import_, scratch)
    image = tmp_path / "images" / "web"
    assert (image / "disk.raw").read_bytes().rstrip(b"\0") == disk
    assert on_loop == []


async def test_an_upload_that_is_longer_than_announced_is_cut_beside_the_loop(
    tmp_path: Path, on_loop: list[str]
) -> None:
    imports = imports_of(tmp_path)
    import_ = wire.ImportWanted("import-1", ImportSpec("web", Source.UPLOAD, size_bytes=100))
    on_loop.clear()
    imports._more[import_.id] = asyncio.Event()
    source = tmp_path / "source"
    source.write_bytes(b"x" * 60)
    receiving = asyncio.create_task(imports._receive(import_, source))
    await asyncio.sleep(0)
    source.write_bytes(b"x" * 4096)
    imports._more[import_.id].set()
    async with asyncio.timeout(30):
        await receiving
    assert source.stat().st_size == 100 and on_loop == []


async def test_a_conversion_waits_for_the_disk_beside_the_loop(
    tmp_path: Path, on_loop: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(*_: object) -> bytes:
        return b""

    monkeypatch.setattr(qemu_img, "run", run)
    (tmp_path / "source").write_bytes(b"x" * 4096)
    user = convert.ToolUser(qemu_img.unchanged, None)
    await convert.convert(tmp_path / "source", ImageFormat.QCOW2, tmp_path / "target", 8192, 0, user)
    await convert.flatten([tmp_path / "source"], tmp_path / "flat", 0, user)
    assert [call for call in on_loop if not call.startswith("ftruncate")] == [], "an empty file grows at once"


@pytest.mark.parametrize("has_source", [True, False])
async def test_a_copy_of_a_layer_is_synced_or_removed_beside_the_loop(
    tmp_path: Path, on_loop: list[str], has_source: bool
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    if has_source:
        source.write_bytes(b"x" * 4096)
        await overlay.copy(source, target)
    else:
        source.mkdir()
        target.write_bytes(b"half")
        on_loop.clear()
        with pytest.raises(overlay.OverlayFailed):
            await overlay.copy(source, target)
    assert target.exists() is has_source and on_loop == []


async def test_a_copy_of_a_layer_that_is_cancelled_is_removed_beside_the_loop(
    tmp_path: Path, on_loop: list[str]
) -> None:
    os.mkfifo(tmp_path / "source")
    command = tmp_path / "cp"  # which does not end by itself
    command.write_text(f"#!/bin/sh\nexec {shutil.which('tail')} -f /dev/null > '{tmp_path}/target'\n")
    command.chmod(0o755)
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{tmp_path}:{path}"
    try:
        copying = asyncio.create_task(overlay.copy(tmp_path / "source", tmp_path / "target"))
        await eventually((tmp_path / "target").exists, "it is copied")
    finally:
        os.environ["PATH"] = path
    copying.cancel()
    await asyncio.gather(copying, return_exceptions=True)
    assert not (tmp_path / "target").exists() and on_loop == []


class Turns(SystemClock):
    """A clock on which no sleep takes any time."""

    async def sleep(self, seconds: float) -> None:
        assert seconds == POLL_S
        await pause_async(0.001)


async def test_the_list_of_peers_is_stored_beside_the_loop_and_its_voters_count_from_then_on(
    tmp_path: Path, on_loop: list[str]
) -> None:
    lease = NodeLease(tmp_path / "lease")
    watch = PeerWatch(tmp_path / "peers.json", "me", cast(Any, None), lease, Turns(), lambda: None)
    on_loop.clear()
    watch.tell(wire.Peers((wire.Peer("a", "127.0.0.1:1"),), ()))
    assert lease.rule.voters_next == () and not (tmp_path / "peers.json").exists(), "the link's reader does not wait"
    running = asyncio.create_task(watch.run())
    await eventually(lambda: lease.rule.voters_next == ("a",), "its voters count")
    assert b'"a"' in (tmp_path / "peers.json").read_bytes()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [call for call in on_loop if "peers" in call] == []


KEY = DataKey("key-0123456789abcdef", bytes(range(32)))
SPEC = VmSpec(image="tiny", power=Power.RUNNING, starts=1)
ASSIGNMENT = wire.Assignment("vm-a", "a", SPEC, False, "", 0, None, "default", bytes(32))
OWNED = wire.Statement("vm-a", Order(OrderKind.OWN, 1), ASSIGNMENT, None)
INFO = ImageInfo("tiny", "0", 1, "kernel")
BACKUP = wire.BackupWanted(
    "backup-1", "vm-a", "a", BackupPhase.MAKING, "repo-0123456789abcdef", True, "", b"{}", KEY
)  # fmt: skip
SENT = wire.ReplicaSent("replica-0123456789abcdef", "vm-a", "host-b", "127.0.0.1:1", 30, False)
KEPT = wire.ReplicaKept(SENT.id, "vm-a", ReplicaPhase.FOLLOWING, "host-a", 2, "tiny", None, 0, bytes(32))
VOLUME = wire.VolumeWanted(
    "volume-1", LOCAL_POOL, 1, VolumePhase.CREATING, encryption_key=KEY.id, key=KEY
)  # fmt: skip
NETWORK = NetworkOnNode("lan", NetworkSpec(), 1, 1450, 1, False, (), (), ())
MESSAGES: tuple[wire.FromServer, ...] = (
    wire.Desired((OWNED, wire.Statement("vm-damaged", Order(OrderKind.GONE, 2)))),
    wire.Beaten(1),
    wire.Peers((wire.Peer("host-b", "127.0.0.1:1"),), ()),
    wire.Imports((wire.ImportWanted("import-1", ImportSpec("web", Source.PATH, "disk")),)),
    wire.Exports((wire.ExportWanted("export-1", "vm-a", ExportPhase.MAKING),)),
    wire.Backups((BACKUP,)),
    wire.Replicas((SENT,), (KEPT,)),
    wire.Volumes((VOLUME,)),
    wire.Networks((NETWORK,)),
    wire.Ask(1, msgspec.Raw(codec.encode(wire.Beaten(1)))),
    wire.ConsoleOpen(1, "vm-a"),
    wire.ConsoleInput(1, b"x"),
    wire.ConsoleTaken(1, 1),
    wire.ConsoleClose(1),
    wire.ProbeExpected("probe-1", "host-b", 1.0),
    wire.ProbeWanted("probe-1", "host-b", "127.0.0.1:1", 1.0),
    wire.CopyExpected("copy-1", "host-b", INFO, False),
    wire.CopyWanted("copy-2", "host-b", "127.0.0.1:1", INFO),
    wire.CertificateIssued(b""),
    wire.Authorities(b""),
    wire.Revoked(("ab" * 32,)),
    wire.Rename("host-c"),
)


def dispatcher_of(services: NodeServices, tasks: asyncio.TaskGroup) -> tuple[Dispatcher, NodeVolumes, PeerWatch]:
    """Return a dispatcher with the parts that an agent has."""
    workers, settings, none = dict[str, Worker](), services.settings, cast(Any, None)

    def add(vm: str, record: Record) -> Worker:
        worker = workers[vm] = Worker(vm, record, services)
        return worker

    peers = PeerWatch(settings.state_dir / "peers.json", "host-a", none, services.lease, SystemClock(), lambda: None)
    consoles = ConsoleRequests(Mock(), Mock(), services.send)
    volumes = NodeVolumes(services.storage_pools, services.images, services.send)
    transfers = Transfers(settings, services, workers, nothing)
    backups = VmBackups(settings, services.find_vm, services.send)
    subjects = Subjects(
        ImageImports(settings, services.send, nothing), VmExports(settings, services.find_vm, services.send), backups,
        BackupFiles(settings), RepositoryPrunes(settings, backups.queues),
        ReplicaSenders(services, services.find_vm, services.send), ReplicaReceivers(services, services.send),
        services, workers, nothing, none,
    )  # fmt: skip
    parts = Parts(services, workers, add, peers, volumes, consoles, transfers, subjects)
    return Dispatcher(parts, tasks), volumes, peers


def test_every_message_of_the_server_is_tried() -> None:
    assert {type(message) for message in MESSAGES} == set(get_args(wire.FromServer))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
async def test_a_message_of_the_server_is_taken_without_waiting_for_a_disk(
    tmp_path: Path, on_loop: list[str], monkeypatch: pytest.MonkeyPatch, message: wire.FromServer
) -> None:
    services = services_in(tmp_path)
    (tmp_path / "journal" / "vm-damaged.json").write_bytes(b"damaged")
    services.journal = Journal(tmp_path / "journal")
    async with asyncio.TaskGroup() as tasks:
        dispatcher, _, _ = dispatcher_of(services, tasks)
        on_loop.clear()
        opened = []
        real = io.open

        def watched(file: Any, *args: Any, **options: Any) -> Any:
            opened.append(str(file))
            return real(file, *args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(io, "open", watched)
            dispatcher.take(message)
        assert on_loop == [] and [path for path in opened if path.startswith(str(tmp_path))] == []
        await dispatcher.end()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


async def test_a_damaged_record_is_set_aside_beside_the_loop_and_its_vm_is_then_seen_to(
    tmp_path: Path, on_loop: list[str]
) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "vm-a.json").write_bytes(b"damaged")
    services = services_in(tmp_path)
    workers = dict[str, Record]()
    parts = Mock(host=services, workers={}, add_worker=lambda vm, record: workers.setdefault(vm, record) and Mock())
    dispatcher = Dispatcher(parts, cast(Any, None))
    on_loop.clear()
    dispatcher.take(wire.Desired((OWNED, wire.Statement("vm-b", Order(OrderKind.OWN, 1))), whole=False))
    assert list(workers) == ["vm-b"], "of this nothing is remembered"
    await eventually(lambda: "vm-a" in workers, "its record was read")
    assert workers["vm-a"].damaged and not workers["vm-b"].damaged and on_loop == []
    dispatcher.take(wire.Desired((wire.Statement("vm-c", Order(OrderKind.OWN, 1)),), whole=False))
    dispatcher.forget()
    await dispatcher.end()


async def test_revoked_keys_are_refused_at_once_and_stored_beside_the_loop(
    tmp_path: Path, on_loop: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "revoked.json"
    revoked = RevokedKeys(path, Admittance(lambda _: "key"))
    monkeypatch.setattr(revoked_keys, "RETRY_S_MIN", 0.001)
    path.with_name("revoked.json.new").mkdir()  # so that it can't be stored at first
    revoked.tell(["key"])
    assert not revoked.admittance.admits(cast(Any, None), Mock())
    storing = asyncio.create_task(revoked.run())
    await pause_async(0.01)
    assert not path.exists()
    path.with_name("revoked.json.new").rmdir()
    on_loop.clear()
    await eventually(path.exists, "it is stored once it can be")
    revoked.tell(["key", "other"])
    await eventually(lambda: b"other" in path.read_bytes(), "so is the next list")
    storing.cancel()
    await asyncio.gather(storing, return_exceptions=True)
    assert on_loop == []


async def test_an_encrypted_volume_is_made_beside_the_loop(
    tmp_path: Path, on_loop: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def create(arguments: Sequence[str], time_s_max: float, invocation: Invocation) -> bytes:
        """Make the file as ``qemu-img`` does, which spends seconds of a processor on the key."""
        *_, name, size_bytes = arguments
        assert invocation.directory is not None
        await asyncio.to_thread((invocation.directory / name).write_bytes, bytes(luks.HEADER_BYTES + int(size_bytes)))
        return b""

    monkeypatch.setattr(qemu_img, "run", create)
    said: asyncio.Queue[wire.Message] = asyncio.Queue()
    services = services_in(tmp_path)
    volumes = NodeVolumes(services.storage_pools, {}, said.put_nowait)
    on_loop.clear()
    running = asyncio.create_task(volumes.run())
    volumes.tell((VOLUME, msgspec.structs.replace(VOLUME, id="volume-2", encryption_key="", key=None)))
    async with asyncio.timeout(60):
        stand = [await said.get(), await said.get()]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [report.phase for report in stand if isinstance(report, wire.VolumeStands)] == [VolumePhase.READY] * 2
    assert on_loop == []


async def test_networks_are_looked_at_beside_the_loop(tmp_path: Path, on_loop: list[str]) -> None:
    networks = NodeNetworks(services_in(tmp_path).settings)
    settled = threading.Event()
    looks = list[int]()

    def settle(*_: object, **__: object) -> bool:
        looks.append(threading.get_ident())
        settled.set()
        return False

    networks._settle = settle  # type: ignore[method-assign]  # it needs namespaces
    on_loop.clear()
    running = asyncio.create_task(networks.run())
    networks.tell((NETWORK,))
    await eventually(settled.is_set, "they are looked at")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert threading.get_ident() not in looks and on_loop == []


def image_of(disk: Path) -> LocalImage:
    return LocalImage(ImageInfo("tiny", "sha256:x", 1, "disk", disk_bytes=SIZE), disk.parent, None, None, "", disk)


def has_disk(services: NodeServices, disk: Path) -> VmContext:
    """Return a VM that is off, with a disk that it wrote to, over an image's."""
    services.images["tiny"] = image_of(disk)
    context = VmContext("vm-a", Record(), services, lambda: None, lambda name, data: None)
    context.assignment = ASSIGNMENT
    context.is_known.set()
    context.machine.home.make()
    layer(context.machine.directory / DISK_LAYER, "-P 1 0 64k")
    return context


async def test_a_backup_is_made_beside_the_loop(tmp_path: Path, on_loop: list[str], image: Path) -> None:
    services = services_in(tmp_path)
    services.settings = msgspec.structs.replace(services.settings, backup_dir=tmp_path / "backups")
    (tmp_path / "backups").mkdir()
    said: asyncio.Queue[wire.Message] = asyncio.Queue()
    context = has_disk(services, image)
    backups = VmBackups(services.settings, lambda _: context, said.put_nowait)
    on_loop.clear()
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        backups.tell((BACKUP,), tasks)
        report = await said.get()
        backups.tell((), tasks)
    assert isinstance(report, wire.BackupStands) and (report.phase, report.error) == (BackupPhase.KEPT, "")
    assert on_loop == []


async def test_a_round_of_a_replica_is_sent_and_kept_beside_the_loop(
    tmp_path: Path, on_loop: list[str], image: Path
) -> None:
    ends, said = Ends(tmp_path), asyncio.Queue[wire.Message]()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    source, target = services_in(tmp_path / "a"), services_in(tmp_path / "b")
    context = has_disk(source, image)
    target.images["tiny"] = image_of(image)
    source.connections, source.identity = ends.pool("a"), Mock()
    source.identity.name = "a"
    target.listener = Listener(ends.tls("b", server=True), pki.peer_name)
    async with asyncio.timeout(60), target.listener.listen("127.0.0.1", 0) as port, asyncio.TaskGroup() as tasks:
        keeper = ReplicaReceivers(target, said.put_nowait)
        sender = ReplicaSenders(source, lambda _: context, said.put_nowait)
        on_loop.clear()
        keeper.tell(wire.Replicas((), (msgspec.structs.replace(KEPT, peer="a"),)), tasks)
        sender.tell((msgspec.structs.replace(SENT, peer="b", endpoint=f"127.0.0.1:{port}"),), tasks)
        reports = [await said.get()]
        while not any(isinstance(report, wire.ReplicaStands) and report.points for report in reports):
            reports.append(await said.get())
        keeper.tell(wire.Replicas((), ()), tasks)
        sender.tell((), tasks)
    source.connections.close()
    assert [report.error for report in reports if isinstance(report, wire.ReplicaRound)] in ([], [""])
    assert [call for call in on_loop if "/rings" not in call] == [], "a receiver's ring begins as an empty file"


async def test_a_vm_lives_and_goes_beside_the_loop(tmp_path: Path, on_loop: list[str]) -> None:
    services, messages = services_in(tmp_path), asyncio.Queue[wire.Message]()
    services.send = messages.put_nowait
    services.pages = Mock(prepare=AsyncMock())
    services.hypervisor = Mock(machine=lambda vm, on_event: SimulatedMachine(vm, tmp_path / "vms", on_event))
    services.images["tiny"] = Mock(spec=LocalImage, disk=None, info=Mock(disk_bytes=0))
    on_loop.clear()
    worker = Worker("vm-a", Record(), services)
    running = asyncio.create_task(worker.run())
    worker.set_desired(OWNED)
    await until_reported(messages, VmState.RUNNING)
    stopped = msgspec.structs.replace(ASSIGNMENT, spec=msgspec.structs.replace(SPEC, power=Power.STOPPED))
    worker.set_desired(msgspec.structs.replace(OWNED, assignment=stopped))
    await until_reported(messages, VmState.STOPPED)
    worker.set_desired(wire.Statement("vm-a", Order(OrderKind.GONE, 2)))
    async with asyncio.timeout(60):
        await running
    assert on_loop == []
