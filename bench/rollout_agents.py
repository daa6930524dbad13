"""Rollouts of agents: ``script/bench rollout --only fleet upgrade``. Waves over simulated nodes, whose link to the
server is real; and the restart of an agent with VMs, as an upgrade does it, seen by guests and at an open console."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.api_load import Stand
from bench.report import Figure, median
from lab.guest import EchoClient
from lab.hosts import Wan, lab
from lab.images import images_dir
from lab.platform import Platform, default_cache, open_directory, platform, until
from novacron.client import ApiError, Client, Config, Unreachable
from novacron.client.console import ConsoleEnded
from novacron.rollout.agents.engine import AgentEngine
from novacron.rollout.agents.fleet import ApiFleet
from novacron.rollout.agents.gates import WaveLimits
from novacron.rollout.agents.journal import AgentJournal
from novacron.rollout.agents.model import AgentRollout, in_waves
from novacron.rollout.agents.node_work import AgentParts, NodeLimits
from novacron.rollout.agents.packages import NAMES, PackageFiles, agent_version, package_version
from novacron.rollout.agents.work import WaveSettings
from novacron.rollout.model import RolloutState
from novacron.rollout.notifications import Notifications
from novacron.rollout.options import RolloutOptions

OLD, NEW = "0-1", "1-1"
"""The packages of the simulated agents, which call themselves 0 and 1."""
CLIENTS, CLIENT_PAUSE_S = 4, 0.02
CONSOLES_S = 5.0
APART_MS = 100.0
"""The least that these clients can tell apart from a busy machine."""
LINK = Wan(1_000_000_000, 1.0, 0.0)


class FleetSize(NamedTuple):
    """How many nodes are rolled out to, and how."""

    nodes: int
    vms: int
    watch_s: float
    at_once: int = 100


class UpgradeSize(NamedTuple):
    """How often an agent is upgraded, with how many VMs."""

    rounds: int
    vms: int
    still_s: float


class SimulatedHosts:
    """Hosts of simulated nodes: what is installed there is an order to the process that simulates them."""

    def __init__(self, orders: Path, names: Sequence[str]) -> None:
        self._orders, self._package = orders, dict.fromkeys(names, OLD)
        self._lock = threading.Lock()

    def debian(self, node: str) -> str:
        return "12"

    def installed(self, node: str) -> str:
        return self._package[node]

    def bring(self, node: str, files: Sequence[Path]) -> None: ...

    def install(self, node: str, files: Sequence[Path]) -> None:
        version = package_version(files[-1])
        with self._lock, self._orders.open("a") as orders:
            self._package[node] = version
            orders.write(f"{node} {agent_version(version)}\n")

    def upgrade_system(self, node: str, packages: Sequence[str]) -> None: ...

    def boot_id(self, node: str) -> str:
        return "1"

    def restart(self, node: str) -> None: ...


class ClientsSaw(NamedTuple):
    """What clients of the API saw."""

    asked: int
    failed: int


@contextmanager
def clients(config: Config) -> Iterator[list[ClientsSaw]]:
    """Read and write for as long as the block runs; the list then has what was seen."""
    over, asked, failed = threading.Event(), [0] * CLIENTS, [0] * CLIENTS

    def work(number: int) -> None:
        client, name = Client(config), f"load-{number}"
        client.create_project(name)
        while not over.wait(CLIENT_PAUSE_S):
            asked[number] += 3
            try:
                client.request("PATCH", f"/api/v1/projects/{name}", {"description": str(asked[number])})
                list(client.list("nodes", limit=20))
                list(client.list("vms", limit=20))
            except (ApiError, Unreachable, OSError):
                failed[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    seen: list[ClientsSaw] = []
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()
        seen.append(ClientsSaw(sum(asked), sum(failed)))


def fleet_figures(size: FleetSize) -> list[Figure]:
    """Roll out to many simulated nodes, and back again by an abort."""
    with open_directory("nvra-") as directory, Stand(directory, size.nodes).run() as stand:
        stand.fill(size.vms)
        print(f"{size.nodes} nodes with {size.vms} VMs are ready", flush=True)
        names = sorted(str(node["name"]) for node in stand.client.list("nodes"))
        packages = directory / "packages"
        packages.mkdir()
        for version in (OLD, NEW):
            for name in NAMES:
                (packages / f"{name}_{version}_amd64.deb").write_bytes(b"")
        journal = AgentJournal(directory / "rollouts")
        journal.open()
        parts = AgentParts(
            ApiFleet(Client(stand.client.config)), SimulatedHosts(stand.orders, names), PackageFiles(packages)
        )
        settings = WaveSettings(size.at_once, 1.0, WaveLimits(), NodeLimits(120.0, 1.0, 1.0))
        engine = AgentEngine(
            journal, parts, settings, Notifications(RolloutOptions()), lambda line: print(line, flush=True)
        )
        rollout = AgentRollout(1, "1", in_waves(names, "1,10%,50%,100%"), time.time(), size.watch_s)
        with clients(stand.client.config) as seen:
            done = engine.run(rollout)
        if done.state is not RolloutState.DONE:
            raise RuntimeError(f"the rollout is {done.state}: {done.reason}")
        forth_s = done.ended_s - done.began_s - size.watch_s * done.waves
        lost = sum(event["reason"] == "NodeLost" for event in stand.client.list("events", limit=5000))
        versions = [str(node["status"]["inventory"]["agent_version"]) for node in stand.client.list("nodes")]
    return [
        Figure(f"agents of {size.nodes:,} nodes in {done.waves} waves, without the watches", forth_s, "s"),
        Figure("  ... nodes with the new version", versions.count("1"), "", size.nodes, at_least=True),
        Figure("  ... nodes taken for lost", lost, "", 0),
        Figure("  ... failed requests meanwhile", seen[0].failed, f"of {seen[0].asked:,}", 0),
    ]


def upgrade_figures(size: UpgradeSize) -> list[Figure]:
    """Restart an agent with VMs, as an upgrade of its package does."""
    with (
        open_directory("nvru-") as directory,
        lab("nvru", default_cache(), wan=LINK) as hosts,
        platform(directory / "p", hosts, images_dir()) as p,
    ):
        return _upgrades(p, size)


def _upgrades(p: Platform, size: UpgradeSize) -> list[Figure]:
    addresses = [f"198.19.0.{10 + number}" for number in range(size.vms)]
    for number, address in enumerate(addresses):
        p.client.create_vm(name=f"vm-{number}", image="tiny", memory_mib=128, node="host-a", address=f"{address}/24")
    vms = list(p.client.list("vms"))
    until(lambda: all("tiny guest: ready" in p.console_log(vm, "host-a") for vm in vms), "the guests have booted", 300)
    before, watched = p.qemus(), [EchoClient(p.lab.hosts[0], address, 0.05) for address in addresses]
    beyond, consoles, back = list[float](), list[float](), list[float]()
    for _ in range(size.rounds):
        still = time.monotonic()
        time.sleep(size.still_s)
        usual = [client.longest_gap_ms(still) for client in watched]
        p.client.open_console("vm-0").close()
        began = time.monotonic()
        p.agents["host-a"].stop()
        p.agents["host-a"].start()
        consoles.append(_until_console(p, began))
        p.wait_node("host-a")
        back.append(time.monotonic() - began)
        time.sleep(max(0.0, size.still_s - back[-1]))
        gaps = [client.longest_gap_ms(began) for client in watched]
        beyond.append(max(0.0, *(gap - max(usual) for gap in gaps)))
    broken = sum(not client.whole() for client in watched)
    for client in watched:
        client.close()
    return [
        median(f"upgrade of an agent with {size.vms} VMs: connected again", back, "s"),
        Figure("  ... QEMUs that ended, or are others", len(set(before.items()) - set(p.qemus().items())), "", 0),
        Figure("  ... guests' TCP sessions that broke", broken, "", 0),
        median("  ... longest gap of any guest, beyond the longest before", beyond, "ms", APART_MS),
        median("  ... a console is open again", consoles, "s", CONSOLES_S),
    ]


def _until_console(p: Platform, began: float) -> float:
    """Wait until a console can be opened again; return how long that took from when the agent was told to end."""
    while True:
        try:
            p.client.open_console("vm-0").close()
            return time.monotonic() - began
        except (ApiError, Unreachable, ConsoleEnded):
            if time.monotonic() > began + 120:
                raise
            time.sleep(0.05)
