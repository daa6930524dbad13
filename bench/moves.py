"""Migrations as they are measured: by NovaCron and by QEMU alone, over a WAN, watched by a client of the guest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from bench import bare
from bench.processor import RECEIVED, SENT, ProcessorUse, Spent, StageLog
from lab.guest import CounterClient
from lab.hosts import Wan, lab
from lab.platform import Object, Platform, PlatformOptions, default_cache, platform, until
from novacron.qemu.command import console_log_path

LINK = Wan(100_000_000, 50.0, 0.001)
FAST_LINK = Wan(1_000_000_000, 1.0, 0.0)
SWITCH_S = 1.0
READY = "tiny guest: ready"
BEST_MODE = "multifd, zstd"
"""QEMU's own way that was fastest whenever all were measured."""
WARM_BYTES = 3 << 30
Processes = Callable[[], Mapping[str, int]]
"""Names and ids of processes that carry a migration."""
WARMING = """
import mmap, sys
memory = mmap.mmap(-1, int(sys.argv[1]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
memory[:: mmap.PAGESIZE] = b"x" * (len(memory) // mmap.PAGESIZE)
"""
OTHER_LINKS = (
    Wan(500_000_000, 20.0, 0.0001),
    Wan(100_000_000, 100.0, 0.01),
    Wan(100_000_000, 150.0, 0.001),
    Wan(100_000_000, 200.0, 0.001),
)


class Guests(NamedTuple):
    """The images of the guests that are moved."""

    mixed: str = "mixed"
    writer: str = "writer"
    database: str = "database"


class Size(NamedTuple):
    """How much is measured, and on what."""

    rounds: int
    modes: tuple[str, ...]
    link: Wan = LINK
    links: tuple[Wan, ...] = OTHER_LINKS
    idle_moves: int = 30
    memory_mib: int = 1024
    small_memory_mib: int = 512
    guests: Guests = Guests()
    measured: tuple[tuple[str, int], ...] = (("mixed", 1024),)
    """Images of the guests that stand for all, and their memory in MiB."""
    around_s: float = 2.0
    """How long the guest's client is watched after a move."""
    settle_s: float = 4.0
    """How long a guest that has booted is left alone before it moves."""
    away_s: float = 30.0
    beside_s: float = 20.0
    """How long a sibling has been there: its node has looked at it by then."""
    warm_bytes: int = WARM_BYTES
    share_site: bool = False
    """Measure everything on one platform, which then remembers what moved before."""


FULL = Size(3, tuple(bare.MODES))
QUICK = Size(1, (BEST_MODE,))
SMOKE = Size(
    1, (BEST_MODE,), FAST_LINK, OTHER_LINKS[:1], 1, 128, 128, Guests("tiny", "tiny", "disk"),
    (("tiny", 128),), around_s=0.3, settle_s=0.1, away_s=0.3, beside_s=0.1, warm_bytes=1 << 20, share_site=True,
)  # fmt: skip


class Move:
    """One migration as it was measured."""

    def __init__(self, total_s: float, downtime_ms: float, progress: Object, watched: Watched, rate: int) -> None:
        self.total_s, self.downtime_ms, self.progress = total_s, downtime_ms, progress
        self.sent_mb, self.spent = watched.sent_mb, watched.spent
        self.use, self.memory_mb = watched.use.share(rate), watched.use.memory_mb
        self.sending: dict[str, float] = {}
        """Processor seconds of the sender by stage."""
        self.receiving: dict[str, float] = {}

    @property
    def processor_s(self) -> float:
        """Processor seconds of both ends together, without those of the guest itself."""
        return sum(s.migrating_s if name.startswith("qemu") else s.whole_s for name, s in self.spent.items())

    def __str__(self) -> str:
        p = self.progress
        return (
            f"{self.total_s:.2f} s (transfer {p['elapsed_s']:.2f}), {self.sent_mb:.1f} MB, "
            f"{self.downtime_ms:.0f} ms down, link {self.use:.0%}, {p['passes']} passes,"
            f" {self.processor_s:.2f} s of processors"
        )


class LinkUse:
    """Samples what the link delivers while the block runs."""

    def __init__(self, p: Platform) -> None:
        pids = [service.process.pid for service in p.agents.values() if service.process is not None]
        self._counters = [Path(f"/proc/{pid}/net/dev") for pid in pids]
        self._samples: list[tuple[float, int]] = []
        self._status = [Path(f"/proc/{pid}/status") for pid in pids]
        self._memory_before = self._memory()
        self.memory_mb = 0.0
        """What an agent's memory grew by at most."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> LinkUse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            delivered = sum(
                int(line.split()[1])
                for path in self._counters
                for line in path.read_text().splitlines()
                if "wan:" in line
            )
            self._samples.append((time.monotonic(), delivered))
            grown = [now - before for now, before in zip(self._memory(), self._memory_before, strict=True)]
            self.memory_mb = max(self.memory_mb, *grown)

    def _memory(self) -> list[float]:
        """Return each agent's anonymous memory in MB."""
        matches = [re.search(r"RssAnon:\s+(\d+) kB", path.read_text()) for path in self._status]
        return [int(match[1]) * 1024 / 1e6 if match else 0.0 for match in matches]

    def share(self, capacity_bit_per_s: float) -> float:
        """Return the link's use in the middle of what was sent: where data waited from end to end."""
        if len(self._samples) < 8:
            return 0.0
        total = self._samples[-1][1] - self._samples[0][1]
        inner = [s for s in self._samples if 0.15 < (s[1] - self._samples[0][1]) / max(total, 1) < 0.85]
        if len(inner) < 3:
            return 0.0
        (t0, b0), (t1, b1) = inner[0], inner[-1]
        return (b1 - b0) * 8 / (t1 - t0) / capacity_bit_per_s


class Watched(NamedTuple):
    """What is seen of a migration from outside; ``ended`` is a moment of the monotonic clock."""

    sent_mb: float
    use: LinkUse
    client: CounterClient
    spent: dict[str, Spent]

    def check_whole(self) -> None:
        """Raise RuntimeError if the client's connection broke or lines are missing."""
        if self.client.broken or self.client.missing_numbers():
            raise RuntimeError(f"the guest's client lost lines: {self.client.broken}")

    def downtime_ms(self, ended: float) -> float:
        """Return the longest gap that the client saw around the migration's end, and close it."""
        self.client.close()
        return self.client.longest_gap_ms(ended - SWITCH_S, ended + SWITCH_S)


class Ground:
    """Where migrations are measured: platforms on two hosts with a link between them."""

    def __init__(self, directory: Path, images: Path, size: Size, *, busy: bool = False) -> None:
        self.directory, self.images, self.size = directory, images, size
        self.busy = busy
        """Other processes use the processors, too."""
        self._stack = contextlib.ExitStack()
        self._shared: Platform | None = None

    def __enter__(self) -> Ground:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def site(self, link: Wan, *agent_options: str) -> Iterator[Platform]:
        """Run a platform on two hosts with this link between them; always the first one if it is to be shared."""
        if not self.size.share_site:
            with self._open(link, agent_options) as p:
                yield p
            return
        if self._shared is None:
            self._shared = self._stack.enter_context(self._open(link, agent_options))
        yield self._shared

    @contextlib.contextmanager
    def _open(self, link: Wan, agent_options: tuple[str, ...]) -> Iterator[Platform]:
        place = Path(tempfile.mkdtemp(dir=self.directory))
        place.chmod(0o755)
        with (
            lab(f"nvb{os.getpid()}", default_cache(), link) as hosts,
            platform(place / "p", hosts, self.images, PlatformOptions(agent=agent_options)) as p,
        ):
            print(f"{link}; agents {' '.join(agent_options) or 'with their defaults'}", flush=True)
            yield p

    def boot(self, p: Platform, name: str, image: str, node: str, number: int, memory_mib: int = 0) -> None:
        """Create a VM and wait until it works; ``number`` is the last part of its address."""
        vm = p.client.create_vm(
            name=name, image=image, memory_mib=memory_mib or self.size.memory_mib, node=node,
            address=f"198.19.0.{number}/24",
        )  # fmt: skip
        p.wait_state(vm["id"], "running")
        until(lambda: READY in p.console_log(p.client.get("vms", vm["id"])), f"{name} has booted", 90)
        time.sleep(self.size.settle_s)

    def move(self, p: Platform, name: str, target: str, number: int, policy: str = "throttle") -> Move:
        """Migrate a VM and watch it from a client on host-a."""
        vm = p.client.get("vms", name)
        source = str(vm["node"])
        logs = {end: StageLog(p.directory / f"{end}.log") for end in (source, target)}

        def processes() -> dict[str, int]:
            qemus = {f"qemu {key.split('/')[0]}": pid for key, pid in p.qemus().items() if vm["id"] in key}
            agents = {f"agent {n}": a.process.pid for n, a in p.agents.items() if a.process is not None}
            return agents | qemus

        with self._watching(p, number, processes) as watched:
            p.cli("vm", "migrate", name, "--to", target, "--timeout", "180", "--policy", policy)
        newest: Any = next(iter(p.client.list("migrations", limit=1)))
        ended, created = (datetime.fromisoformat(newest[key]).timestamp() for key in ("finished_at", "created_at"))
        watched[0].check_whole()
        downtime_ms = watched[0].downtime_ms(ended - time.time() + time.monotonic())
        measured = Move(ended - created, downtime_ms, newest["progress"], watched[0], p.lab.wan.rate_bit_per_s)
        measured.sending = until(lambda: logs[source].stages(SENT), "the source tells of its stages")
        measured.receiving = until(lambda: logs[target].stages(RECEIVED), "the target tells of its stages")
        print(f"  {name} to {target}: {measured}", flush=True)
        return measured

    @contextlib.contextmanager
    def _watching(self, p: Platform, number: int, processes: Processes) -> Iterator[list[Watched]]:
        """Watch the guest, the link and ``processes`` for as long as the block runs, and shortly after; then yields
        what was seen."""
        client = CounterClient(p.lab.hosts[0], f"198.19.0.{number}")
        watched: list[Watched] = []
        try:
            until(lambda: client.last > 20, "the guest counts")
            warm(self.size.warm_bytes)
            before = p.lab.link_bytes()
            with LinkUse(p) as use, ProcessorUse(processes) as spending:
                yield watched
        except BaseException:
            client.close()
            raise
        sent_mb = (p.lab.link_bytes() - before) / 1e6
        watched.append(Watched(sent_mb, use, client, spending.spent()))
        time.sleep(self.size.around_s)

    def native(
        self, p: Platform, image: str, mode: str, memory_mib: int = 0, timeout_s: float = bare.MIGRATE_TIMEOUT_S,
        mirror: str | None = None,
    ) -> Move:  # fmt: skip
        """Migrate a bare guest with one of QEMU's own ways, with its disk if it is to be mirrored."""
        memory_mib = memory_mib or self.size.memory_mib
        source, target = machines = [
            bare.Bare(
                self.directory / f"bare-{h.name}", self.images, h, memory_mib, f"198.19.0.{h.number + 10}/24", image
            )
            for h in p.lab.hosts
        ]
        if mirror is not None:
            source.make_disk(over_image=True)
            target.make_disk(over_image=mirror == "top")
        try:
            source.start()
            until(lambda: console_log_path(source.directory).exists(), "the bare guest starts")
            source.until_ready()
            time.sleep(self.size.settle_s)
            target.start(incoming=True)
            pids = {f"qemu {m.host.name}": m.process.pid for m in machines if m.process is not None}
            with self._watching(p, 11, lambda: pids) as watched:
                total_s = asyncio.run(bare.migrate(source, target, mode, timeout_s, mirror))
                ended = time.monotonic()
        finally:
            for machine in machines:
                machine.stop()
        progress = {"passes": 0, "elapsed_s": total_s}
        measured = Move(total_s, watched[0].downtime_ms(ended), progress, watched[0], p.lab.wan.rate_bit_per_s)
        with_disk = "" if mirror is None else f", disk mirrored ({mirror})"
        print(f"  QEMU's own, {mode}{with_disk}: {measured}", flush=True)
        return measured


def warm(size_bytes: int) -> None:
    """Touch memory that is free: below a virtual machine it may have to be fetched first, and whichever guest is then
    received pays for that."""
    # Another process does it: here it would stop the clients' clocks.
    subprocess.run([sys.executable, "-c", WARMING, str(size_bytes)], check=True)


def delete(p: Platform, *names: str) -> None:
    for name in names:
        p.cli("vm", "delete", name, "--wait", "--yes")
    p.until_clean()
