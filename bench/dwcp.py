"""DWCP against QEMU's own migration, on the same guests, links and hosts, in one run. ``script/bench dwcp``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import bare, datapath
from bench.report import Figure, median, plot, report
from lab.guest import CounterClient
from lab.hosts import Host, Wan, lab, missing
from lab.images import guests_dir
from lab.platform import Object, Platform, clean_up_when_ended, default_cache, open_directory, platform, until
from novacron.qemu.command import console_log_path, monitor_path
from novacron.qemu.monitor import Monitor

MEMORY_MIB = 1024
SETTLE_S = 4.0
AWAY_S = 30.0
BESIDE_S = 20.0
"""How long a sibling has been there: its node has looked at it by then."""
LINK = Wan(100_000_000, 50.0, 0.001)
AROUND_S = 2.0
SWITCH_S = 1.0
READY = "tiny guest: ready"
IDLE_MOVES = 30
WARM_BYTES = 3 << 30
WARMING = """
import mmap, sys
memory = mmap.mmap(-1, int(sys.argv[1]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
memory[:: mmap.PAGESIZE] = b"x" * (len(memory) // mmap.PAGESIZE)
"""
GIVE_UP_S = 60.0
OTHER_LINKS = (
    Wan(500_000_000, 20.0, 0.0001),
    Wan(100_000_000, 100.0, 0.01),
    Wan(100_000_000, 150.0, 0.001),
    Wan(100_000_000, 200.0, 0.001),
)

Samples = list[float]


class Move:
    """One migration as it was measured."""

    def __init__(
        self, total_s: float, sent_mb: float, downtime_ms: float, progress: Object, use: LinkUse, rate: int
    ) -> None:
        self.total_s, self.sent_mb, self.downtime_ms, self.progress = total_s, sent_mb, downtime_ms, progress
        self.use, self.memory_mb = use.share(rate), use.memory_mb

    def __str__(self) -> str:
        p = self.progress
        return (
            f"{self.total_s:.2f} s (transfer {p['elapsed_s']:.2f}), {self.sent_mb:.1f} MB, "
            f"{self.downtime_ms:.0f} ms down, link {self.use:.0%}, {p['passes']} passes"
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
        found = [re.search(r"RssAnon:\s+(\d+) kB", path.read_text()) for path in self._status]
        return [int(match[1]) * 1024 / 1e6 if match else 0.0 for match in found]

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


def warm() -> None:
    """Touch memory that is free: below a virtual machine it may have to be fetched first, and whichever guest is then
    received pays for that."""
    subprocess.run(
        [sys.executable, "-c", WARMING, str(WARM_BYTES)], check=True
    )  # here it would stop the clients' clocks


def boot(p: Platform, name: str, image: str, node: str, number: int, memory_mib: int = MEMORY_MIB) -> Object:
    """Create a VM and wait until it works."""
    vm = p.client.create_vm(
        name=name, image=image, memory_mib=memory_mib, node=node, address=f"198.19.0.{number}/24"
    )  # fmt: skip
    p.wait_state(vm["id"], "running")
    until(lambda: READY in p.console_log(p.client.get("vms", vm["id"])), f"{name} has booted", 90)
    time.sleep(SETTLE_S)
    found: Object = p.client.get("vms", vm["id"])
    return found


def delete(p: Platform, *names: str) -> None:
    for name in names:
        p.cli("vm", "delete", name, "--wait")
    p.until_clean()


def move(p: Platform, name: str, target: str, number: int, timeout_s: float = 180, policy: str = "throttle") -> Move:
    """Migrate a VM and watch it from a client on host-a."""
    client = CounterClient(p.lab.hosts[0], f"198.19.0.{number}")
    until(lambda: client.last > 20, "the guest counts")
    warm()
    before = p.lab.link_bytes()
    with LinkUse(p) as use:
        p.cli("vm", "migrate", name, "--to", target, "--timeout", str(timeout_s), "--policy", policy)
    sent = (p.lab.link_bytes() - before) / 1e6
    time.sleep(AROUND_S)
    newest: Any = next(iter(p.client.list("migrations", limit=1)))
    ended, created = (datetime.fromisoformat(newest[key]).timestamp() for key in ("finished_at", "created_at"))
    at = ended - time.time() + time.monotonic()
    if client.broken or client.missing_numbers():
        raise RuntimeError(f"the guest's client lost lines: {client.broken}")
    client.close()
    gap = client.longest_gap_ms(at - SWITCH_S, at + SWITCH_S)
    made = Move(ended - created, sent, gap, newest["progress"], use, p.lab.wan.rate_bit_per_s)
    print(f"  {name} to {target}: {made}", flush=True)
    return made


def native(
    p: Platform, directory: Path, images: Path, image: str, mode: str, memory_mib: int = MEMORY_MIB,
    timeout_s: float = bare.MIGRATE_TIMEOUT_S, mirror: str | None = None,
) -> Move:  # fmt: skip
    """Migrate a bare guest with one of QEMU's own ways, with its disk if it is to be mirrored."""
    machines = [
        bare.Bare(directory / f"bare-{h.name}", images, h, memory_mib, f"198.19.0.{h.number + 10}/24", image)
        for h in p.lab.hosts
    ]
    source, destination = machines
    if mirror is not None:
        source.make_disk(over_image=True)
        destination.make_disk(over_image=mirror == "top")
    try:
        source.start()
        until(lambda: console_log_path(source.directory).exists(), "the bare guest starts")
        source.until_ready()
        time.sleep(SETTLE_S)
        destination.start(incoming=True)
        client = CounterClient(p.lab.hosts[0], "198.19.0.11")
        until(lambda: client.last > 20, "the bare guest counts")
        warm()
        before = p.lab.link_bytes()
        with LinkUse(p) as use:
            total_s = asyncio.run(bare.migrate(source, destination, mode, timeout_s, mirror))
        ended = time.monotonic()
        sent = (p.lab.link_bytes() - before) / 1e6
        time.sleep(AROUND_S)
        gap = client.longest_gap_ms(ended - SWITCH_S, ended + SWITCH_S)
        client.close()
    finally:
        for machine in machines:
            machine.stop()
    made = Move(total_s, sent, gap, {"passes": 0, "elapsed_s": total_s}, use, p.lab.wan.rate_bit_per_s)
    print(f"  QEMU's own, {mode}{'' if mirror is None else f', disk mirrored ({mirror})'}: {made}", flush=True)
    return made


@contextlib.contextmanager
def site(directory: Path, link: Wan, images: Path, *options: str) -> Iterator[Platform]:
    """Run a platform on two hosts with this link between them."""
    place = Path(tempfile.mkdtemp(dir=directory))
    place.chmod(0o755)
    with (
        lab(f"nvb{os.getpid()}", default_cache(), link) as hosts,
        platform(place / "p", hosts, images, options) as p,
    ):
        print(f"{link}; agents {' '.join(options) or 'as they come'}", flush=True)
        yield p


def situations(directory: Path, images: Path, rounds: int, modes: list[str]) -> list[Figure]:
    """The mixed guest over the main link: first time, image known, sibling there, coming back."""
    peers: dict[str, list[Move]] = {mode: [] for mode in modes}
    first, known, back, beside = [], [], [], []
    with site(directory, LINK, images, "--reuse", "none") as p:
        for number in range(rounds):
            for mode in modes if number == 0 else modes[-1:]:
                peers[mode].append(native(p, directory, images, "mixed", mode))
            boot(p, f"first-{number}", "mixed", "host-a", 20)
            first.append(move(p, f"first-{number}", "host-b", 20))
            delete(p, f"first-{number}")
    for _ in range(rounds):  # each on nodes that remember nothing
        with site(directory, LINK, images) as p:
            boot(p, "one", "mixed", "host-a", 21)
            known.append(move(p, "one", "host-b", 21))
            time.sleep(AWAY_S - AROUND_S)
            back.append(move(p, "one", "host-a", 21))
            boot(p, "other", "mixed", "host-b", 22)
            time.sleep(BESIDE_S)
            beside.append(move(p, "other", "host-a", 22))
            delete(p, "one", "other")
    best = min(modes, key=lambda mode: sorted(m.total_s for m in peers[mode])[len(peers[mode]) // 2])
    peer = peers[best]
    figures = [
        figure
        for mode in modes
        for figure in (
            median(f"QEMU's own, {mode}", [m.total_s for m in peers[mode]], "s"),
            median("  bytes on the link", [m.sent_mb for m in peers[mode]], "MB"),
        )
    ]
    middle_s = sorted(m.total_s for m in peer)[len(peer) // 2]
    middle_mb = sorted(m.sent_mb for m in peer)[len(peer) // 2]
    for name, moves, faster, share in (
        ("first time, destination knows nothing", first, 1.6, 0.6),
        ("first time, destination holds the image", known, None, None),
        ("destination runs another VM of the same image", beside, 3.0, 0.3),
        ("destination had this VM 30 s ago", back, 7.0, 0.02),
    ):
        figures += [
            median(f"{name}: request to end", [m.total_s for m in moves], "s"),
            median("  transfer alone", [m.progress["elapsed_s"] for m in moves], "s"),
            median(f"  faster than QEMU's {best}", [middle_s / m.total_s for m in moves], "x", faster, at_least=True),
            median("  bytes on the link", [m.sent_mb for m in moves], "MB"),
            median("  share of QEMU's bytes", [m.sent_mb / middle_mb for m in moves], "x", share),
            median("  downtime for a client", [m.downtime_ms for m in moves], "ms", 250.0),
        ]
    added = [m.memory_mb for m in (*first, *known, *back, *beside)]
    figures.append(Figure("memory added to an agent by one migration", max(added), "MB", 300.0, tuple(added)))
    figures.append(
        median("link use while data waits, 100 Mbit/s", [m.use * 100 for m in first], "%", 95, at_least=True)
    )
    return figures


def idle_moves(directory: Path, images: Path, count: int) -> list[Figure]:
    """An idle guest moves there and back."""
    with site(directory, LINK, images) as p:
        boot(p, "idle", "tiny", "host-a", 23, 512)
        moves = [move(p, "idle", ("host-b", "host-a")[number % 2], 23) for number in range(count)]
        delete(p, "idle")
    times = sorted(m.total_s for m in moves)
    p95 = times[min(len(times) - 1, int(len(times) * 0.95))]
    return [
        Figure(f"idle guest, {count} migrations, p95 of request to end", p95, "s", 5.0, tuple(times)),
        median("  downtime for a client", [m.downtime_ms for m in moves], "ms", 250.0),
    ]


def writer(directory: Path, images: Path, rounds: int) -> list[Figure]:
    """A guest that writes faster than the link takes it."""
    moves: list[Move] = []
    followed: list[Move] = []
    throttled: list[float] = []

    def whole(name: str) -> bool:
        return not p.client.get("vms", name)["status"]["reason"]

    with site(directory, LINK, images) as p:
        for number in range(rounds):
            for policy, made in (("throttle", moves), ("post-copy", followed)):
                name = f"writer-{number}-{policy}"
                boot(p, name, "writer", "host-a", 24, 512)
                made.append(move(p, name, "host-b", 24, policy=policy))
                until(functools.partial(whole, name), "its memory has come", 120)
                delete(p, name)
            throttled.append(float(moves[-1].progress["throttle_percent"]))
        try:
            native(p, directory, images, "writer", "multifd, zstd", 512, GIVE_UP_S)
            peer = f"QEMU's own converged within {GIVE_UP_S:.0f} s"
        except TimeoutError:
            peer = f"QEMU's own (multifd, zstd) had not converged after {GIVE_UP_S:.0f} s"
    return [
        Figure("write-heavy guest: runs that completed", len(moves) / rounds * 100, "%", 100.0, (), True),
        median(f"  request to end ({peer})", [m.total_s for m in moves], "s"),
        median("  downtime for a client", [m.downtime_ms for m in moves], "ms"),
        median("  processor time denied at the end", throttled, "%"),
        Figure("  with post-copy: runs that completed", len(followed) / rounds * 100, "%", 100.0, (), True),
        median("  request to the guest running elsewhere", [m.total_s for m in followed], "s"),
        median("  downtime for a client", [m.downtime_ms for m in followed], "ms", 200.0),
    ]


def links(directory: Path, images: Path) -> list[Figure]:
    """The mixed guest over other links: QEMU's best way, the first time, coming back."""
    figures = []
    for link in OTHER_LINKS:
        with site(directory, link, images) as p:
            peer = native(p, directory, images, "mixed", "multifd, zstd")
            boot(p, "far", "mixed", "host-a", 25)
            first = move(p, "far", "host-b", 25)
            back = move(p, "far", "host-a", 25)
            delete(p, "far")
        figures += [
            Figure(f"{link}: QEMU's multifd, zstd", peer.total_s, "s"),
            Figure("  first time, image known", first.total_s, "s"),
            Figure("  coming back", back.total_s, "s"),
            Figure("  downtime for a client, first time", first.downtime_ms, "ms"),
        ]
        if link.rate_bit_per_s == 500_000_000:
            figures.append(Figure("  link use while data waits", first.use * 100, "%", 85.0, (), True))
    return figures


def disks(directory: Path, images: Path, rounds: int) -> list[Figure]:
    """The mixed guest with a disk of 1.5 GB whose image the target holds: QEMU's own mirror, first time, return."""
    whole, layer, first, back = [], [], [], []
    for number in range(rounds):
        with site(directory, LINK, images) as p:
            if number == 0:
                whole.append(native(p, directory, images, "database", "multifd, zstd", timeout_s=300, mirror="full"))
            layer.append(native(p, directory, images, "database", "multifd, zstd", mirror="top"))
            boot(p, "disk", "database", "host-a", 26)
            first.append(move(p, "disk", "host-b", 26))
            time.sleep(AWAY_S - AROUND_S)
            back.append(move(p, "disk", "host-a", 26))
            delete(p, "disk")
    own_s, own_mb = whole[0].total_s, whole[0].sent_mb
    figures = [
        Figure("QEMU's own NBD mirror (whole disk), then multifd, zstd", own_s, "s"),
        Figure("  bytes on the link", own_mb, "MB"),
        median("QEMU's own NBD mirror of the layer alone, then multifd, zstd", [m.total_s for m in layer], "s"),
        median("  bytes on the link", [m.sent_mb for m in layer], "MB"),
    ]
    for name, moves, faster, share in (
        ("with its 1.5 GB disk, image known", first, 5.0, 0.15),
        ("with its disk, back after 30 s", back, None, None),
    ):
        figures += [
            median(f"{name}: request to end", [m.total_s for m in moves], "s"),
            median("  faster than QEMU's own mirror", [own_s / m.total_s for m in moves], "x", faster, at_least=True),
            median("  bytes on the link", [m.sent_mb for m in moves], "MB"),
            median("  share of QEMU's bytes", [m.sent_mb / own_mb for m in moves], "x", share),
            median("  downtime for a client", [m.downtime_ms for m in moves], "ms"),
        ]
    added = [m.memory_mb for m in (*first, *back)]
    figures.append(Figure("  memory added to an agent", max(added), "MB", 300.0, tuple(added)))
    return figures


def record(directory: Path, images: Path) -> tuple[Path, int]:
    """Record the migration stream of the mixed guest; return its file, and the guest's memory in bytes."""
    guest = bare.Bare(directory / "recorded", images, Host("here", None, 1), MEMORY_MIB, None, "mixed")
    path, stream = directory / "stream.sock", directory / "stream.bin"
    guest.start()
    try:
        until(lambda: console_log_path(guest.directory).exists(), "the guest starts")
        guest.until_ready()
        time.sleep(SETTLE_S)
        asyncio.run(_record(guest, path, stream))
    finally:
        guest.stop()
    return stream, MEMORY_MIB << 20


async def _record(guest: bare.Bare, path: Path, stream: Path) -> None:
    loop = asyncio.get_running_loop()
    monitor = await Monitor.connect(monitor_path(guest.directory), lambda *_: None, lambda: True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(1)
        server.setblocking(False)
        unlimited = {"max-bandwidth": bare.BANDWIDTH_BYTES_PER_S, "downtime-limit": bare.DOWNTIME_LIMIT_MS}
        await monitor.execute("migrate-set-parameters", unlimited)
        await monitor.execute("migrate", {"uri": f"unix:{path}"})
        connection, _ = await loop.sock_accept(server)
        with connection, stream.open("wb") as file:
            while data := await loop.sock_recv(connection, 1 << 20):
                file.write(data)
    await monitor.close()


def data_path(directory: Path, images: Path, rounds: int) -> list[Figure]:
    """The codec and the loopback path on a recorded stream; what a connection that waits saves."""
    stream, memory = record(directory, images)
    size = stream.stat().st_size
    coded = [datapath.codec(stream, directory) for _ in range(rounds)]
    carried = [size / 1e6 / datapath.loopback(stream, directory) for _ in range(rounds)]
    stream.unlink()
    with lab(f"nvb{os.getpid()}", default_cache(), LINK) as hosts:
        cold, warm = datapath.handshakes(hosts.hosts, directory, max(3, rounds))
    return [
        median(
            "codec, first time: memory per byte sent", [memory / sent for _, sent in coded], "x", 7.1, at_least=True
        ),
        median("  stream per byte sent", [size / sent for _, sent in coded], "x", 7.1, at_least=True),
        median("  stream taken, one thread", [size / 1e6 / s for s, _ in coded], "MB/s", 180.0, at_least=True),
        median("data path over loopback, TLS, one process a side", carried, "MB/s", 400.0, at_least=True),
        median("session opened on a new connection, 50 ms round trip", cold, "ms"),
        median("  on one that waits", warm, "ms"),
        median("  saved", [c - w for c, w in zip(cold, warm, strict=True)], "ms"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/bench dwcp", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and links, under five minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--only", action="append", choices=["data-path", "situations", "idle", "writer", "links", "disks"],
        help="measure this part, and others that are named so",
    )  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw time and bytes there, as SVG")
    arguments = parser.parse_args()
    lacks = missing()
    if lacks:
        print("this benchmark needs network namespaces: " + "; ".join(lacks), file=sys.stderr)
        return 1
    clean_up_when_ended()
    images = guests_dir()
    rounds = 1 if arguments.quick else 3
    modes = ["multifd, zstd"] if arguments.quick else list(bare.MODES)
    sections: dict[str, Callable[[Path], list[Figure]]] = {
        "data-path": lambda directory: data_path(directory, images, rounds),
        "situations": lambda directory: situations(directory, images, rounds, modes),
        "idle": lambda directory: idle_moves(directory, images, IDLE_MOVES),
        "writer": lambda directory: writer(directory, images, rounds),
        "links": lambda directory: links(directory, images),
        "disks": lambda directory: disks(directory, images, rounds),
    }
    wanted = arguments.only or (["data-path", "situations"] if arguments.quick else list(sections))
    figures: list[Figure] = []
    with open_directory("nvb-") as directory:
        for name in wanted:
            found = sections[name](directory)
            if name == "situations" and arguments.plot is not None:
                plot(found, arguments.plot)
            figures += found
    report("dwcp", figures, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
