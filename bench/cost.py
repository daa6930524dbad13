"""What a migration costs: processor seconds for each GiB of guest memory, on each side, by stage, beside QEMU's own."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable

from bench.moves import BEST_MODE, Ground, Move, delete
from bench.report import Figure, median
from novacron.dwcp.page_codec import PageHash
from novacron.dwcp.page_ring import PAGE

ALONE_PAGES = 16_384
SOURCE_STAGES = {
    "read": "reading QEMU's stream",
    "split": "finding its pages",
    "look_up": "digests, look-ups, check",
    "compress": "compression",
}
TARGET_STAGES = {"decode": "decompression, pages, check", "write": "writing into QEMU"}
SOURCE, TARGET = "host-a", "host-b"


def cost(ground: Ground) -> list[Figure]:
    """Each guest: QEMU's fastest way, a first move to where nothing is known, and back."""
    figures = [digests_alone()]
    totals: dict[str, list[float]] = {"first": [], "back": []}
    for image, memory_mib in ground.size.measured:
        peers, first, back = [], [], []
        with ground.site(ground.size.link, "--reuse", "checkpoint") as p:
            for number in range(ground.size.rounds):
                peers.append(ground.native(p, image, BEST_MODE, memory_mib))
                name = f"cost-{number}"
                ground.boot(p, name, image, SOURCE, 28, memory_mib)
                first.append(ground.move(p, name, TARGET, 28))
                time.sleep(ground.size.away_s - ground.size.around_s)
                back.append(ground.move(p, name, SOURCE, 28))
                delete(p, name)
        gib = memory_mib / 1024
        peer_s = statistics.median(m.processor_s for m in peers)
        figures += [
            _each(f"{image}: QEMU's {BEST_MODE}, both ends", peers, lambda m: m.processor_s, gib),
            _each("  source: QEMU", peers, lambda m: m.spent[f"qemu {SOURCE}"].migrating_s, gib),
            _each("  target: QEMU", peers, lambda m: m.spent[f"qemu {TARGET}"].migrating_s, gib),
            _each(f"{image}: first time, both ends", first, lambda m: m.processor_s, gib),
            median("  against QEMU's", [m.processor_s / peer_s for m in first], "x", 0.8),
            *_stages(first, SOURCE, TARGET, gib),
            _each(f"{image}: back, both ends", back, lambda m: m.processor_s, gib),
            median("  against QEMU's", [m.processor_s / peer_s for m in back], "x", 0.25),
            *_stages(back, TARGET, SOURCE, gib),
        ]
        totals["first"] += [m.processor_s / peer_s for m in first]
        totals["back"] += [m.processor_s / peer_s for m in back]
    return [
        *figures,
        Figure("worst of all guests, first time: against QEMU's", max(totals["first"]), "x", 0.8),
        Figure("worst of all guests, back: against QEMU's", max(totals["back"]), "x", 0.25),
    ]


def digests_alone() -> Figure:
    """Return what the digests of pages cost that are no zeros."""
    hash, data = PageHash(b"k" * 32), os.urandom(ALONE_PAGES * PAGE)
    began = time.thread_time()
    for at in range(0, len(data), PAGE):
        hash.digest(data[at : at + PAGE])
    return Figure("digests of pages, alone", (time.thread_time() - began) / (len(data) / (1 << 30)), "s/GiB")


def _each(name: str, moves: Iterable[Move], value: Callable[[Move], float], gib: float) -> Figure:
    return median(name, [value(move) / gib for move in moves], "s/GiB")


def _stages(moves: list[Move], source: str, target: str, gib: float) -> list[Figure]:
    """Return what each end of these moves used, by stage."""
    figures = [_each("  source: QEMU", moves, lambda m: m.spent[f"qemu {source}"].migrating_s, gib)]
    figures += [
        _each(f"  source: {text}", moves, lambda m, stage=stage: m.sending.get(stage, 0.0), gib)  # type: ignore[misc]
        for stage, text in SOURCE_STAGES.items()
    ]
    figures.append(_each("  source: frames, TLS, all else", moves, lambda m: _rest(m, source, m.sending), gib))
    figures.append(_each("  target: frames, TLS, all else", moves, lambda m: _rest(m, target, m.receiving), gib))
    figures += [
        _each(f"  target: {text}", moves, lambda m, stage=stage: m.receiving.get(stage, 0.0), gib)  # type: ignore[misc]
        for stage, text in TARGET_STAGES.items()
    ]
    return [*figures, _each("  target: QEMU", moves, lambda m: m.spent[f"qemu {target}"].migrating_s, gib)]


def _rest(move: Move, host: str, stages: dict[str, float]) -> float:
    return max(0.0, move.spent[f"agent {host}"].whole_s - sum(stages.values()))
