"""How a benchmark reports: a table for people, a JSON file for programs, the machine it ran on."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import statistics
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Figure(NamedTuple):
    """One measured value. ``bound`` is the most that it may be, or with ``at_least`` the least, or None where nothing
    was promised."""

    name: str
    value: float
    unit: str
    bound: float | None = None
    samples: tuple[float, ...] = ()
    at_least: bool = False

    @property
    def holds(self) -> bool | None:
        if self.bound is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def median(name: str, samples: list[float], unit: str, bound: float | None = None, *, at_least: bool = False) -> Figure:
    """Return the median of ``samples`` as a figure."""
    return Figure(name, statistics.median(samples), unit, bound, tuple(samples), at_least)


def parser(bench: str, description: str | None, quick: str) -> argparse.ArgumentParser:
    """Return the command line that all benchmarks share; ``quick`` says what ``--quick`` leaves out."""
    command_line = argparse.ArgumentParser(prog=f"script/bench {bench}", description=description)
    extent = command_line.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help=quick)
    extent.add_argument(
        "--smoke", action="store_true", help="only show that it runs: seconds, a tiny load, no bounds, useless figures"
    )
    command_line.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return command_line


def machine() -> dict[str, str | int]:
    """Return what the figures depend on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return {
        "cpu": model,
        "cores": os.cpu_count() or 0,
        "memory_mib": memory_mib,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def report(bench: str, figures: list[Figure], json_path: Path | None, *, smoke: bool = False) -> None:
    """Print the table, say which bounds do not hold, and write the JSON file if one is wanted. With ``smoke`` the
    figures have no bounds."""
    if smoke:
        figures = [figure._replace(bound=None) for figure in figures]
    if not all(math.isfinite(figure.value) for figure in figures):
        raise ValueError(f"script/bench {bench}: a figure is not a number: {figures}")
    console = Console(width=120)
    _print(console, bench, figures, smoke=smoke)
    if json_path is not None:
        document = {
            "bench": bench,
            "smoke": smoke,
            "machine": machine(),
            "figures": [
                {"name": f.name, "value": f.value, "unit": f.unit, "bound": f.bound,
                 "at_least": f.at_least, "holds": f.holds,
                 "samples": f.samples} for f in figures
            ],
        }  # fmt: skip
        json_path.write_text(json.dumps(document, indent=2) + "\n")
        console.print(f"written to {json_path}")


def _print(console: Console, bench: str, figures: list[Figure], *, smoke: bool) -> None:
    table = Table(title=f"\nscript/bench {bench}", title_justify="left")
    for column, justify in (
        ("figure", "left"),
        ("median", "right"),
        ("range", "right"),
        ("bound", "right"),
        ("", "left"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for figure in figures:
        spread = f"{min(figure.samples):.3g} - {max(figure.samples):.3g}" if figure.samples else ""
        bound = "" if figure.bound is None else f"{'>=' if figure.at_least else '<='} {figure.bound:g} {figure.unit}"
        verdict = {None: "", True: "holds", False: "MISSED"}[figure.holds]
        table.add_row(figure.name, f"{figure.value:.3g} {figure.unit}", spread, bound, verdict)
    console.print(table)
    console.print(", ".join(f"{key}: {value}" for key, value in machine().items()), highlight=False)
    missed = [figure.name for figure in figures if figure.holds is False]
    if smoke:
        console.print("a smoke run: it shows that the benchmark runs; do not quote its figures")
    else:
        console.print("every bound holds" if not missed else "missed: " + "; ".join(missed))


def plot(figures: list[Figure], path: Path) -> None:
    """Draw seconds and megabytes of each way to migrate as an SVG: no library is needed for bars."""
    rows: list[tuple[str, float, float]] = []
    for first, second in itertools.pairwise(figures):
        if second.name.strip() == "bytes on the link":
            rows.append((first.name, first.value, second.value))
    for number, figure in enumerate(figures):
        if figure.name.endswith(": request to end"):
            sent = next(f.value for f in figures[number:] if f.name.strip() == "bytes on the link")
            rows.append((figure.name.removesuffix(": request to end"), figure.value, sent))
    rows = [row for row in rows if not row[0].startswith("  ")]
    wide = 300
    slowest, most = max(row[1] for row in rows), max(row[2] for row in rows)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="960" height="{60 + 26 * len(rows)}" font-family="sans-serif"'
        ' font-size="13"><rect width="100%" height="100%" fill="white"/>',
        '<text x="300" y="24" font-weight="bold">seconds</text>',
        '<text x="640" y="24" font-weight="bold">MB on the link</text>',
    ]
    for number, (name, seconds, megabytes) in enumerate(rows):
        y = 40 + 26 * number
        long, large = seconds / slowest * wide * 0.85, max(1.0, megabytes / most * wide * 0.85)
        colour = "#8a8f98" if "QEMU's own" in name else "#2563eb"
        lines += [
            f'<text x="290" y="{y + 14}" text-anchor="end">{name}</text>',
            f'<rect x="300" y="{y}" width="{long:.0f}" height="18" fill="{colour}"/>',
            f'<text x="{306 + long:.0f}" y="{y + 14}">{seconds:.1f}</text>',
            f'<rect x="640" y="{y}" width="{large:.0f}" height="18" fill="{colour}"/>',
            f'<text x="{646 + large:.0f}" y="{y + 14}">{megabytes:.1f}</text>',
        ]
    path.write_text("\n".join([*lines, "</svg>", ""]))
