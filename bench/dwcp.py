"""DWCP against QEMU's own migration, on the same guests, links and hosts, in one run. ``script/bench dwcp``."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench import bare, datapath
from bench.cost import cost
from bench.moves import BEST_MODE, FULL, QUICK, SMOKE, Ground, Move, delete
from bench.processor import busy
from bench.report import Figure, median, parser, plot, report
from lab.hosts import Host, lab, missing
from lab.images import further_guests, guests_dir, images_dir
from lab.measured_guests import GuestInvalid, brought
from lab.platform import clean_up_when_ended, default_cache, open_directory, until
from novacron.qemu.command import console_log_path, monitor_path
from novacron.qemu.monitor import Monitor

GIVE_UP_S = 60.0


BOUNDS = {
    # faster, share of the bytes; faster beside two busy processes
    "first time, destination knows nothing": (1.65, 0.55, 1.2),
    "first time, destination holds the image": (3.0, 0.25, 2.0),
    "destination runs another VM of the same image": (4.5, 0.2, 3.0),
    "destination had this VM 30 s ago": (10.0, 0.015, 6.0),
}
"""What is promised of each situation, for the worst of all guests."""
FIRST, KNOWN, BESIDE, BACK = BOUNDS
DOWNTIME_MS_MAX = 250.0


class _Measured(NamedTuple):
    """Moves of one guest: QEMU's own by mode, ours by situation."""

    peers: dict[str, list[Move]]
    moves: dict[str, list[Move]]

    @property
    def best(self) -> str:
        """QEMU's fastest mode here."""
        return min(self.peers, key=lambda mode: statistics.median(m.total_s for m in self.peers[mode]))

    def ratios(self, name: str) -> tuple[list[float], list[float]]:
        """Return how much faster each move of a situation was than QEMU's fastest, and its share of the bytes."""
        peer, moves = self.peers[self.best], self.moves[name]
        peer_s, peer_mb = statistics.median(m.total_s for m in peer), statistics.median(m.sent_mb for m in peer)
        return [peer_s / m.total_s for m in moves], [m.sent_mb / peer_mb for m in moves]

    def figures(self, guest: str) -> list[Figure]:
        """Return all that was measured of a guest."""
        figures = []
        for mode, peers in self.peers.items():
            figures.append(median(f"{guest}: QEMU's own, {mode}", [m.total_s for m in peers], "s"))
            figures.append(median("  bytes on the link", [m.sent_mb for m in peers], "MB"))
        for name, moves in self.moves.items():
            faster, share = self.ratios(name)
            figures += [
                median(f"{guest}: {name}: request to end", [m.total_s for m in moves], "s"),
                median("  transfer alone", [m.progress["elapsed_s"] for m in moves], "s"),
                median(f"  faster than QEMU's {self.best}", faster, "x"),
                median("  bytes on the link", [m.sent_mb for m in moves], "MB"),
                median("  share of QEMU's bytes", share, "x"),
                median("  downtime for a client", [m.downtime_ms for m in moves], "ms"),
                median("  processor time, both ends", [m.processor_s for m in moves], "s"),
            ]
        return figures


def situations(ground: Ground) -> list[Figure]:
    """Each guest over the main link: first time, image known, sibling there, coming back; and the worst of them."""
    measured = {image: _situations_of(ground, image, memory_mib) for image, memory_mib in ground.size.measured}
    figures = [figure for image, each in measured.items() for figure in each.figures(image)]
    for name, (faster, share, faster_busy) in BOUNDS.items():
        ratios = [each.ratios(name) for each in measured.values()]
        worst = [min(statistics.median(ratio[0]) for ratio in ratios), max(statistics.median(r[1]) for r in ratios)]
        down_ms = max(statistics.median(m.downtime_ms for m in each.moves[name]) for each in measured.values())
        figures += [
            Figure(f"worst guest, {name}: faster", worst[0], "x", faster_busy if ground.busy else faster, (), True),
            Figure("  share of QEMU's bytes", worst[1], "x", share),
            Figure("  downtime for a client", down_ms, "ms", DOWNTIME_MS_MAX),
        ]
    all_moves = [m for each in measured.values() for moves in each.moves.values() for m in moves]
    added, firsts = [m.memory_mb for m in all_moves], [m for each in measured.values() for m in each.moves[FIRST]]
    figures.append(Figure("memory added to an agent by one migration", max(added), "MB", 300.0, tuple(added)))
    figures.append(
        median("link use while data waits, 100 Mbit/s", [m.use * 100 for m in firsts], "%", 95, at_least=True)
    )
    return figures


def _situations_of(ground: Ground, guest: str, memory_mib: int) -> _Measured:
    size = ground.size
    peers: dict[str, list[Move]] = {mode: [] for mode in size.modes}
    moves: dict[str, list[Move]] = {name: [] for name in BOUNDS}
    with ground.site(size.link, "--reuse", "none") as p:
        for number in range(size.rounds):
            for mode in size.modes if number == 0 else size.modes[-1:]:
                peers[mode].append(ground.native(p, guest, mode, memory_mib))
            ground.boot(p, f"first-{number}", guest, "host-a", 20, memory_mib)
            moves[FIRST].append(ground.move(p, f"first-{number}", "host-b", 20))
            delete(p, f"first-{number}")
    for _ in range(size.rounds):  # each on nodes that remember nothing
        with ground.site(size.link) as p:
            ground.boot(p, "one", guest, "host-a", 21, memory_mib)
            moves[KNOWN].append(ground.move(p, "one", "host-b", 21))
            time.sleep(size.away_s - size.around_s)
            moves[BACK].append(ground.move(p, "one", "host-a", 21))
            ground.boot(p, "other", guest, "host-b", 22, memory_mib)
            time.sleep(size.beside_s)
            moves[BESIDE].append(ground.move(p, "other", "host-a", 22))
            delete(p, "one", "other")
    return _Measured(peers, moves)


def idle_moves(ground: Ground) -> list[Figure]:
    """An idle guest moves there and back."""
    count = ground.size.idle_moves
    with ground.site(ground.size.link) as p:
        ground.boot(p, "idle", "tiny", "host-a", 23, ground.size.small_memory_mib)
        moves = [ground.move(p, "idle", ("host-b", "host-a")[number % 2], 23) for number in range(count)]
        delete(p, "idle")
    times = sorted(m.total_s for m in moves)
    p95 = times[min(len(times) - 1, int(len(times) * 0.95))]
    return [
        Figure(f"idle guest, {count} migrations, p95 of request to end", p95, "s", 5.0, tuple(times)),
        median("  downtime for a client", [m.downtime_ms for m in moves], "ms", 250.0),
    ]


def writer(ground: Ground) -> list[Figure]:
    """A guest that writes faster than the link takes it."""
    size = ground.size
    moves: list[Move] = []
    followed: list[Move] = []
    throttled: list[float] = []

    def whole(name: str) -> bool:
        return not p.client.get("vms", name)["status"]["reason"]

    with ground.site(ground.size.link) as p:
        for number in range(ground.size.rounds):
            for policy, results, address in (("throttle", moves, 24), ("post-copy", followed, 27)):
                name = f"writer-{number}-{policy}"
                ground.boot(p, name, size.guests.writer, "host-a", address, size.small_memory_mib)
                results.append(ground.move(p, name, "host-b", address, policy=policy))
                until(functools.partial(whole, name), "its memory has come", 120)
                delete(p, name)
            throttled.append(float(moves[-1].progress["throttle_percent"]))
        try:
            ground.native(p, size.guests.writer, BEST_MODE, size.small_memory_mib, GIVE_UP_S)
            peer = f"QEMU's own converged within {GIVE_UP_S:.0f} s"
        except TimeoutError:
            peer = f"QEMU's own (multifd, zstd) had not converged after {GIVE_UP_S:.0f} s"
    return [
        Figure("write-heavy guest: runs that completed", len(moves) / size.rounds * 100, "%", 100.0, (), True),
        median(f"  request to end ({peer})", [m.total_s for m in moves], "s"),
        median("  downtime for a client", [m.downtime_ms for m in moves], "ms"),
        median("  processor time denied at the end", throttled, "%"),
        Figure("  with post-copy: runs that completed", len(followed) / size.rounds * 100, "%", 100.0, (), True),
        median("  request to the guest running elsewhere", [m.total_s for m in followed], "s"),
        median("  downtime for a client", [m.downtime_ms for m in followed], "ms", 200.0),
    ]


def links(ground: Ground) -> list[Figure]:
    """The mixed guest over other links: QEMU's best way, the first time, coming back."""
    figures = []
    for link in ground.size.links:
        with ground.site(link) as p:
            peer = ground.native(p, ground.size.guests.mixed, BEST_MODE)
            ground.boot(p, "far", ground.size.guests.mixed, "host-a", 25)
            first = ground.move(p, "far", "host-b", 25)
            back = ground.move(p, "far", "host-a", 25)
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


def disks(ground: Ground) -> list[Figure]:
    """The mixed guest with a disk of 1.5 GB whose image the target holds: QEMU's own mirror, first time, return."""
    guest = ground.size.guests.database
    whole, layer, first, back = [], [], [], []
    for number in range(ground.size.rounds):
        with ground.site(ground.size.link) as p:
            if number == 0:
                whole.append(ground.native(p, guest, BEST_MODE, timeout_s=300, mirror="full"))
            layer.append(ground.native(p, guest, BEST_MODE, mirror="top"))
            ground.boot(p, "disk", guest, "host-a", 26)
            first.append(ground.move(p, "disk", "host-b", 26))
            time.sleep(ground.size.away_s - ground.size.around_s)
            back.append(ground.move(p, "disk", "host-a", 26))
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


def record(ground: Ground) -> tuple[Path, int]:
    """Record the migration stream of the mixed guest; return its file, and the guest's memory in bytes."""
    size, directory = ground.size, ground.directory
    guest = bare.Bare(
        directory / "recorded", ground.images, Host("here", None, 1), size.memory_mib, None, size.guests.mixed
    )
    path, stream = directory / "stream.sock", directory / "stream.bin"
    guest.start()
    try:
        until(lambda: console_log_path(guest.directory).exists(), "the guest starts")
        guest.until_ready()
        time.sleep(size.settle_s)
        asyncio.run(_record(guest, path, stream))
    finally:
        guest.stop()
    return stream, size.memory_mib << 20


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


def data_path(ground: Ground) -> list[Figure]:
    """The codec and the loopback path on a recorded stream; what a connection that waits saves."""
    rounds, directory = ground.size.rounds, ground.directory
    stream, memory = record(ground)
    size = stream.stat().st_size
    coded = [datapath.codec(stream, directory) for _ in range(rounds)]
    carried = [size / 1e6 / datapath.carry(stream, directory).took_s for _ in range(rounds)]
    with lab(f"nvd{os.getpid()}", default_cache(), ground.size.link) as hosts:
        over_link = [datapath.carry(stream, directory, *hosts.hosts[:2]) for _ in range(rounds)]
        cold, warm = datapath.handshakes(hosts.hosts, directory, max(3, rounds))
    stream.unlink()
    return [
        median(
            "codec, first time: memory per byte sent", [memory / sent for _, sent in coded], "x", 7.1, at_least=True
        ),
        median("  stream per byte sent", [size / sent for _, sent in coded], "x", 7.1, at_least=True),
        median("  stream taken, one thread", [size / 1e6 / s for s, _ in coded], "MB/s", 180.0, at_least=True),
        median("data path over loopback, TLS, one process a side", carried, "MB/s", 400.0, at_least=True),
        median(f"recorded stream over {ground.size.link}, no guest beside", [c.took_s for c in over_link], "s"),
        median("  processor time of the sender", [c.sender_s for c in over_link], "s"),
        median("  processor time of the receiver", [c.receiver_s for c in over_link], "s"),
        median("session opened on a new connection, 50 ms round trip", cold, "ms"),
        median("  on one that waits", warm, "ms"),
        median("  saved", [c - w for c, w in zip(cold, warm, strict=True)], "ms"),
    ]


SECTIONS: dict[str, Callable[[Ground], list[Figure]]] = {
    "data-path": data_path,
    "cost": cost,
    "situations": situations,
    "idle": idle_moves,
    "writer": writer,
    "links": links,
    "disks": disks,
}


def main() -> int:
    line = parser("dwcp", __doc__, "fewer rounds and links, under five minutes")
    line.add_argument(
        "--only", action="append", choices=SECTIONS, help="measure this part, and others that are named so"
    )
    line.add_argument(
        "--guest", action="append", type=Path, default=[], metavar="DIRECTORY",
        help="measure this guest, in cost and situations: its folder `files` is what it holds in memory, and guest.toml"
        " says memory_mib, random_mib and workload",
    )  # fmt: skip
    line.add_argument("--busy", action="store_true", help="let two processes beside use the processors")
    line.add_argument("--plot", type=Path, metavar="FILE", help="draw time and bytes there, as SVG")
    options = line.parse_args()
    lacks = missing()
    if lacks:
        print("this benchmark needs network namespaces: " + "; ".join(lacks), file=sys.stderr)
        return 1
    try:
        guests = [brought(directory) for directory in options.guest]
    except GuestInvalid as error:
        line.error(str(error))
    clean_up_when_ended()
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    names = options.only or (["data-path", "situations"] if options.quick else list(SECTIONS))
    figures: list[Figure] = []
    if guests or not (options.smoke or options.quick):
        built = tuple((image, guest.memory_mib) for image, guest in further_guests(guests).items())
        size = size._replace(measured=built if guests else (*size.measured, *built))
    with (
        busy() if options.busy else contextlib.nullcontext(),
        open_directory("nvb-") as directory,
        Ground(directory, images_dir() if options.smoke else guests_dir(), size, busy=options.busy) as g,
    ):
        for name in names:
            began = time.monotonic()
            measured = SECTIONS[name](g)
            print(f"{name}: done in {time.monotonic() - began:.0f} s", flush=True)
            if name == "situations" and options.plot is not None:
                plot(measured, options.plot)
            figures += measured
    report("dwcp", figures, options.json, smoke=options.smoke)
    return 0


if __name__ == "__main__":
    sys.exit(main())
