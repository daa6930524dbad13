"""``novacron agent``: runs this host's VMs as the control plane says, and keeps them running without it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from novacron import pki
from novacron.agent import identity as identities
from novacron.agent.actions import Action, doing
from novacron.agent.control import queries
from novacron.agent.control.link import Link, Renamed
from novacron.agent.control.peers import Peers
from novacron.agent.control.queries import Subjects
from novacron.agent.host import inventory as inventories
from novacron.agent.host.lease import NodeLease
from novacron.agent.host.loads import Loads
from novacron.agent.host.networks import Networks
from novacron.agent.host.passthrough import Passthrough
from novacron.agent.host.volumes import Pools, Volumes
from novacron.agent.identity import Identity
from novacron.agent.images import copies, unused
from novacron.agent.images.exports import Exports
from novacron.agent.images.imports import Imports
from novacron.agent.migration import estimate, path_probe
from novacron.agent.migration.known_pages import Neighbour, Pages
from novacron.agent.observe.metrics import AgentMetrics
from novacron.agent.settings import Settings
from novacron.agent.vm import console_log
from novacron.agent.vm.console import Consoles
from novacron.agent.vm.journal import Journal, Record
from novacron.agent.vm.start_queue import Turns
from novacron.agent.worker import Host, Worker
from novacron.disk.images import scan
from novacron.dwcp.connection import Pool
from novacron.dwcp.receiver import Listener
from novacron.model.errors import InvalidInput
from novacron.model.node import Inventory
from novacron.model.ownership import Claim
from novacron.model.token import decode_ticket
from novacron.net import tap
from novacron.qemu import userfaults
from novacron.telemetry import logs, traces
from novacron.telemetry import process as telemetry
from novacron.telemetry.values import counter
from novacron.wire import messages as wire

log = logs.get(__name__)

MESSAGES = counter("novacron_agent_messages_total")
IMAGES_CHECK_S = 5.0
CONSOLE_LOGS_CHECK_S = 2.0
LOADS_S = 30.0
LOOK_AROUND_S = 10.0
PROBES_MAX = 4
COPIES_MAX = 4
ASIDE_MAX = 32
STARTS_AT_ONCE = 4
"""QEMUs of a node that start at once; more only wait for each other."""
QUESTIONS_MAX = 64
SWITCH_INTERVAL_S = 0.0005
"""DWCP's threads mostly work without the interpreter's lock: they should not wait for it long."""


class _Few:
    """Tasks of the agent's of which there may be only a few at once."""

    def __init__(self, count: int) -> None:
        self.tasks: asyncio.TaskGroup | None = None
        self._count = count
        self._running: set[asyncio.Task[None]] = set()

    def full(self) -> bool:
        return len(self._running) >= self._count

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        assert self.tasks is not None
        task = self.tasks.create_task(self._guard(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:  # a defect met in one must not take the agent, and its VMs' workers, away
            log.exception("defect in work that is done aside")


class Agent:
    """One node."""

    def __init__(
        self, settings: Settings, identity: Identity, inventory: Inventory, host: Host, renewed: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._inventory = inventory
        self._host = host
        self._workers: dict[str, Worker] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._peers = Peers(settings.state_dir / "peers.json", identity.name, host.pool, host.lease, self._lease_over)
        self._link = Link(identity, self._hello, self._receive, self._lost, self._peers.heartbeat, renewed)
        self._consoles = Consoles(settings.vms_dir, self._pid_of, self._link.send_bulk)
        self._probes, self._copies, self._aside = _Few(PROBES_MAX), _Few(COPIES_MAX), _Few(ASIDE_MAX)
        self._questions = _Few(QUESTIONS_MAX)
        self._imports = Imports(settings, self._link.send, self._look_at_images)
        self._volumes = Volumes(host.pools, host.images, self._link.send)
        self._exports = Exports(settings, self._workers.get, self._link.send)
        self._looking = asyncio.Lock()
        metrics = AgentMetrics(host, self._workers, lambda: self._link.connected)
        self._subjects = Subjects(self._imports, self._exports, host, self._workers, self._look_at_images, metrics)
        host.send = self._link.send
        host.aside = self._start_aside
        host.neighbours = self._neighbours
        host.worker = self._workers.get
        host.listener.on_knock = self._knocked
        host.listener.vitals = lambda: msgspec.msgpack.encode(self._peers.vitals())

    async def run(self) -> None:
        """Work until cancelled. VMs go on running afterwards."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for vm, record in self._host.journal.load().items():
                if record.held.claim is not Claim.NONE or (self._settings.vms_dir / vm).exists():
                    self._add(vm, record)
            tasks.create_task(self._link.run(), name="link")
            tasks.create_task(self._peers.run(), name="peers")
            if self._settings.bridge is not None or self._inventory.networks:
                tasks.create_task(asyncio.to_thread(tap.load), name="netlink")
            tasks.create_task(self._host.networks.run(), name="networks")
            tasks.create_task(self._watch_images(), name="images")
            tasks.create_task(self._volumes.run(), name="volumes")
            tasks.create_task(self._watch_console_logs(), name="console-logs")
            tasks.create_task(self._measure(), name="loads")
            tasks.create_task(self._look_around(), name="neighbours")
            tasks.create_task(telemetry.watch(), name="process")
            self._probes.tasks = self._copies.tasks = self._aside.tasks = self._questions.tasks = tasks

    def _add(self, vm: str, record: Record) -> Worker:
        assert self._tasks is not None
        worker = self._workers[vm] = Worker(vm, record, self._host)
        self._tasks.create_task(self._work(worker), name=f"worker-{vm}")
        return worker

    async def _work(self, worker: Worker) -> None:
        await worker.run()
        if self._workers.get(worker.vm) is worker:
            del self._workers[worker.vm]

    def _pid_of(self, vm: str) -> int | None:
        worker = self._workers.get(vm)
        return None if worker is None else worker.machine.pid

    def _neighbours(self) -> list[Neighbour]:
        return [found for worker in self._workers.values() if (found := worker.neighbour()) is not None]

    def _start_aside(self, work: Coroutine[Any, Any, None]) -> None:
        if self._aside.full():
            work.close()
        else:
            self._aside.start(work)

    def _knocked(self, session: str, peer: str) -> None:
        for worker in self._workers.values():
            worker.is_knocked(session, peer)

    def _hello(self) -> wire.Hello:
        self._host.lease.rule.connected()
        for worker in self._workers.values():
            worker.resync()
        return wire.Hello(wire.PROTOCOL, self._inventory, tuple(self._workers))

    def _lease_over(self) -> None:
        """What was said before may not be true any more: highly available VMs are others' until we are told again."""
        for worker in self._workers.values():
            worker.lease_is_over()
        self._link.restart()

    def _lost(self) -> None:
        self._consoles.close_all()

    async def _receive(self, message: wire.Message) -> None:
        MESSAGES.add(type(message).__name__)
        match message:
            case wire.Desired(statements=statements, whole=whole):
                for statement in statements:
                    worker = self._workers.get(statement.vm)
                    if worker is None or worker.finished:
                        record = self._host.journal.load_one(statement.vm)
                        worker = self._add(statement.vm, record)
                    worker.tell(statement)
                told = {statement.vm for statement in statements}
                for vm in self._workers.keys() - told if whole else ():
                    log.warning("the server does not know a VM that is here; it is left as it is", vm=vm)
            case wire.Beaten(number=number):
                self._host.lease.beaten(number)
            case wire.Peers():
                self._peers.tell(message)
            case wire.Imports(imports=imports):
                assert self._tasks is not None
                self._imports.tell(imports, self._tasks)
            case wire.Exports(exports=exports):
                assert self._tasks is not None
                self._exports.tell(exports, self._tasks)
            case wire.Networks(networks=networks):
                self._host.networks.tell(networks)
            case wire.Volumes(volumes=volumes):
                self._volumes.tell(volumes)
            case wire.Ask(ask=ask) if self._questions.full():
                self._link.send(wire.Answered(ask, error="it is asked too much already"))
            case wire.Ask():
                self._questions.start(self._answer(message))
            case wire.ConsoleOpen(channel=channel, vm=vm, kind=kind):
                await self._consoles.open(channel, vm, kind)
            case wire.ConsoleInput(channel=channel, data=data):
                await self._consoles.write(channel, data)
            case wire.ConsoleClose(channel=channel):
                self._consoles.close(channel)
            case wire.ProbeExpected() | wire.ProbeWanted() if self._probes.full():
                self._link.send(wire.Probed(message.probe, None, error="it takes part in too many probes already"))
            case wire.ProbeExpected():
                self._probes.start(self._expect(message))
            case wire.ProbeWanted():
                self._probes.start(self._probe(message))
            case wire.CopyExpected() | wire.CopyWanted() if self._copies.full():
                self._link.send(wire.Copied(message.copy, error="it takes part in too many copies already"))
            case wire.CopyExpected():
                self._copies.start(self._take_copy(message))
            case wire.CopyWanted():
                self._copies.start(self._give_copy(message))

    async def _answer(self, message: wire.Ask) -> None:
        self._link.send(await queries.answer(message, self._subjects))

    async def _expect(self, wanted: wire.ProbeExpected) -> None:
        listener, rings_dir = self._host.listener, self._settings.rings_dir
        self._link.send(wire.ProbeReady(wanted.probe))
        with doing(Action.PROBE, source=wanted.peer):
            await path_probe.receive(listener, wanted.probe, wanted.peer, rings_dir, wanted.seconds)

    async def _probe(self, wanted: wire.ProbeWanted) -> None:
        name, rings_dir = self._host.identity.name, self._settings.rings_dir
        try:
            looking = None
            if wanted.vm is not None:
                worker = self._workers.get(wanted.vm)
                neighbour = None if worker is None else worker.neighbour()
                if worker is None or neighbour is None:
                    raise estimate.ForeseeFailed("the VM does not run here")
                looking = await estimate.look(neighbour.machine, neighbour.memory_bytes, worker.moving_files())
            with doing(Action.PROBE, target=wanted.peer):
                found = await path_probe.measure(
                    self._host.pool, wanted.probe, name, wanted.peer, wanted.endpoint, rings_dir, wanted.seconds,
                    wanted.rate_bytes_per_s,
                )  # fmt: skip
            limit_s = self._settings.downtime_limit_ms / 1e3
            foreseen = None if looking is None else estimate.foresee(looking, found, limit_s)
            self._link.send(wire.Probed(wanted.probe, found, foreseen))
        except (path_probe.ProbeFailed, estimate.ForeseeFailed) as error:
            self._link.send(wire.Probed(wanted.probe, None, error=str(error)))

    async def _take_copy(self, wanted: wire.CopyExpected) -> None:
        self._link.send(wire.CopyReady(wanted.copy))
        try:
            with doing(Action.COPY_IN, image=wanted.image.name, source=wanted.peer):
                await copies.take(self._host.listener, wanted, self._settings)
            if wanted.on_demand:
                await asyncio.to_thread(unused.mark, self._settings, wanted.image.name)
            log.info("an image has arrived", image=wanted.image.name, source=wanted.peer)
            await self._look_at_images()
            self._link.send(wire.Copied(wanted.copy))
        except copies.CopyFailed as error:
            log.warning("an image did not arrive", image=wanted.image.name, source=wanted.peer, error=str(error))
            self._link.send(wire.Copied(wanted.copy, error=str(error)))

    async def _give_copy(self, wanted: wire.CopyWanted) -> None:
        image = self._host.images.get(wanted.image.name)
        try:
            if image is None or image.info != wanted.image:
                raise copies.CopyFailed(f"this node does not hold that image {wanted.image.name}")
            with doing(Action.COPY_OUT, image=wanted.image.name, target=wanted.peer):
                await copies.give(self._host.pool, wanted, image, self._settings)
        except copies.CopyFailed as error:
            log.warning("an image could not be sent", image=wanted.image.name, target=wanted.peer, error=str(error))
            self._link.send(wire.Copied(wanted.copy, error=str(error)))

    async def _watch_images(self) -> None:
        """Tell the server about images that come and go."""
        while True:
            await asyncio.sleep(IMAGES_CHECK_S)
            await self._look_at_images()
            used = [image for worker in self._workers.values() if (image := worker.image_name()) is not None]
            try:
                await asyncio.to_thread(unused.look, self._settings, dict(self._host.images), used, self._link.send)
            except OSError as error:
                log.warning("can't see which images are used", error=str(error))

    async def _look_around(self) -> None:
        """Know what pages of running VMs there are here before a VM comes that has the same ones."""
        while True:
            await asyncio.sleep(LOOK_AROUND_S)
            try:
                await self._host.pages.look_around(self._neighbours())
            except Exception:  # it only spares time later: no defect of it may end the agent
                log.exception("defect while looking at running VMs")

    async def _measure(self) -> None:
        """Tell the server what VMs use of the processors."""
        loads = Loads()
        while True:
            running = [(vm, worker.machine.pid) for vm, worker in self._workers.items()]
            found = loads.look((vm, pid) for vm, pid in running if pid is not None)
            if found:
                self._link.send(wire.Measured(tuple(found)))
            await asyncio.sleep(LOADS_S)

    async def _watch_console_logs(self) -> None:
        """Keep what guests print within limits, however fast they do."""
        while True:
            await asyncio.sleep(CONSOLE_LOGS_CHECK_S)
            for worker in list(self._workers.values()):
                with contextlib.suppress(OSError):  # looked at again
                    console_log.bound(worker.machine.directory)

    async def _look_at_images(self) -> None:
        async with self._looking:
            images, _ = await asyncio.to_thread(scan, self._settings.images_dir)
            self._host.images.clear()
            self._host.images.update(images)
            infos = tuple(image.info for image in images.values())
            pools, _ = await asyncio.to_thread(self._host.pools.look)
            if (infos, pools) != (self._inventory.images, self._inventory.pools):
                self._inventory = msgspec.structs.replace(self._inventory, images=infos, pools=pools)
                self._link.send(wire.InventoryChanged(self._inventory))


async def _run(settings: Settings, identity: Identity) -> None:
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, main.cancel)
    settings.vms_dir.mkdir(parents=True, exist_ok=True)
    context = identity.tls(server=True)
    listener = Listener(context, pki.peer_name)
    pool = Pool(lambda: identity.tls(server=False))
    pages = Pages(settings)
    await asyncio.to_thread(pages.store.clean)
    await asyncio.to_thread(copies.clean, settings)
    userfaults.restore(settings.state_dir)
    async with listener.listen(settings.dwcp_host, settings.dwcp_port) as port:
        endpoint = f"{settings.advertise or settings.dwcp_host}:{port}"
        pools = Pools(settings)
        inventory, images = await inventories.take(settings, endpoint, pools)
        log.info("agent is up", node=identity.name, accelerator=inventory.accelerator.kind, dwcp=endpoint)
        host = Host(
            settings=settings,
            identity=identity,
            journal=Journal(settings.journal_dir),
            listener=listener,
            images=images,
            accelerator=inventory.accelerator.kind,
            cpu=inventory.cpu,
            endpoint=endpoint,
            pool=pool,
            pages=pages,
            worker=lambda _: None,
            neighbours=list,
            aside=lambda work: work.close(),
            pools=pools,
            turns=Turns(STARTS_AT_ONCE),
            lease=NodeLease(settings.lease_path),
            networks=Networks(settings),
            passthrough=Passthrough(),
            send=lambda _: None,
        )
        try:
            await Agent(settings, identity, inventory, host, lambda: identity.reload(context)).run()
        finally:
            pool.close()


def identify(settings: Settings, join: str | None) -> Identity:
    """Return this node's identity, joining first if it has none. Raises InvalidInput."""
    directory = settings.state_dir / "identity"
    identity = identities.load(directory)
    if identity is not None:
        return identity
    if join is None:
        raise InvalidInput(
            f"this host has not joined yet (no identity in {directory})",
            field="join",
            hint="make a token with: novacron node join-token, and give it with --join",
        )
    if join.startswith("@"):
        join = Path(join[1:]).read_text()
    return identities.join(directory, decode_ticket(join), settings.name)


def _lock(directory: Path) -> int:
    """Make sure that one agent at a time works with ``directory``; return the lock's descriptor."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InvalidInput(
            f"another agent runs with {directory}", field="state-dir", hint="stop it, or name another directory"
        ) from None
    return descriptor


def run(settings: Settings, join: str | None) -> None:
    """Run an agent in this process until it is told to stop. Raises InvalidInput when it can't begin."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    logs.set_up("agent", os.environ.get("NOVACRON_LOG_LEVEL", "info"))
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = _lock(settings.state_dir)
    identity = identify(settings, join)
    traces.set_up("agent", identity.name)
    try:
        if _until_renamed(settings, identity):
            os.execv(sys.executable, sys.orig_argv)  # noqa: S606 (as it was started)
    except asyncio.CancelledError:
        log.info("agent stopped; its VMs go on")
    finally:
        traces.close()
        os.close(lock)


def _until_renamed(settings: Settings, identity: Identity) -> bool:
    """Run until this node has another name. Raises CancelledError when it is told to stop."""
    import uvloop

    renamed = False
    try:
        uvloop.run(_run(settings, identity))
    except* Renamed:
        log.info("this node has another name: its agent begins anew", was=identity.name)
        renamed = True
    return renamed
