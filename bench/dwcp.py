"""DWCP against QEMU's own migration, on the same guests, links and hosts, in one run. ``script/bench dwcp``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import bare
from bench.report import Figure, median, report
from lab.guest import CounterClient
from lab.hosts import Wan, lab, missing
from lab.images import guests_dir
from lab.platform import Object, Platform, clean_up_when_ended, default_cache, open_directory, platform, until
from novacron.qemu.command import console_log_path

MEMORY_MIB = 1024
SETTLE_S = 4.0
AWAY_S = 30.0
LINK = Wan(100_000_000, 50.0, 0.001)
AROUND_S = 2.0
SWITCH_S = 1.0
READY = "tiny guest: ready"
IDLE_MOVES = 30

Samples = list[float]


class Move:
    """One migration as it was measured."""

    def __init__(self, total_s: float, sent_mb: float, downtime_ms: float, progress: Object, use: float) -> None:
        self.total_s, self.sent_mb, self.downtime_ms, self.progress, self.use = (
            total_s, sent_mb, downtime_ms, progress, use,
        )  # fmt: skip

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


def move(p: Platform, name: str, target: str, number: int, timeout_s: float = 180) -> Move:
    """Migrate a VM and watch it from a client on host-a."""
    client = CounterClient(p.lab.hosts[0], f"198.19.0.{number}")
    until(lambda: client.last > 20, "the guest counts")
    before = p.lab.link_bytes()
    with LinkUse(p) as use:
        p.cli("vm", "migrate", name, "--to", target, "--timeout", str(timeout_s))
    sent = (p.lab.link_bytes() - before) / 1e6
    time.sleep(AROUND_S)
    newest: Any = next(iter(p.client.list("migrations", limit=1)))
    ended, created = (datetime.fromisoformat(newest[key]).timestamp() for key in ("finished_at", "created_at"))
    at = ended - time.time() + time.monotonic()
    if client.broken or client.missing_numbers():
        raise RuntimeError(f"the guest's client lost lines: {client.broken}")
    client.close()
    gap = client.longest_gap_ms(at - SWITCH_S, at + SWITCH_S)
    made = Move(ended - created, sent, gap, newest["progress"], use.share(p.lab.wan.rate_bit_per_s))
    print(f"  {name} to {target}: {made}", flush=True)
    return made


def native(p: Platform, directory: Path, images: Path, image: str, mode: str, memory_mib: int = MEMORY_MIB) -> Move:
    """Migrate a bare guest with one of QEMU's own ways."""
    machines = [
        bare.Bare(directory / f"bare-{h.name}", images, h, memory_mib, f"198.19.0.{h.number + 10}/24", image)
        for h in p.lab.hosts
    ]
    source, destination = machines
    try:
        source.start()
        until(lambda: console_log_path(source.directory).exists(), "the bare guest starts")
        source.until_ready()
        time.sleep(SETTLE_S)
        destination.start(incoming=True)
        client = CounterClient(p.lab.hosts[0], "198.19.0.11")
        until(lambda: client.last > 20, "the bare guest counts")
        before = p.lab.link_bytes()
        with LinkUse(p) as use:
            total_s = asyncio.run(bare.migrate(source, destination, mode))
        ended = time.monotonic()
        sent = (p.lab.link_bytes() - before) / 1e6
        time.sleep(AROUND_S)
        gap = client.longest_gap_ms(ended - SWITCH_S, ended + SWITCH_S)
        client.close()
    finally:
        for machine in machines:
            machine.stop()
    made = Move(total_s, sent, gap, {"passes": 0, "elapsed_s": total_s}, use.share(p.lab.wan.rate_bit_per_s))
    print(f"  QEMU's own, {mode}: {made}", flush=True)
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
    with site(directory, LINK, images) as p:
        for number in range(rounds):
            one, other = f"one-{number}", f"other-{number}"
            boot(p, one, "mixed", "host-a", 21)
            known.append(move(p, one, "host-b", 21))
            time.sleep(AWAY_S - AROUND_S)
            back.append(move(p, one, "host-a", 21))
            boot(p, other, "mixed", "host-b", 22)
            beside.append(move(p, other, "host-a", 22))
            delete(p, one, other)
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
    figures.append(
        median("link use while data waits, 100 Mbit/s", [m.use * 100 for m in first], "%", 95, at_least=True)
    )
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/bench dwcp", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and links, under five minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    lacks = missing()
    if lacks:
        print("this benchmark needs network namespaces: " + "; ".join(lacks), file=sys.stderr)
        return 1
    clean_up_when_ended()
    images = guests_dir()
    rounds = 1 if arguments.quick else 5
    modes = ["multifd, zstd"] if arguments.quick else list(bare.MODES)
    figures: list[Figure] = []
    with open_directory("nvb-") as directory:
        figures += situations(directory, images, rounds, modes)
    report("dwcp", figures, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
