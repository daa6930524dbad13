"""What drills measured: one file for each drill, of its last kept run, and the page that is made of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from lab.drills import catalogue
from lab.drills.model import LabDrill, LabDrillRun
from novacron.model.drill import DrillEvery, DrillFigures

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "docs/disaster-recovery/results"
PAGE = ROOT / "docs/disaster-recovery/results.md"

HEAD = """# Results of drills

What `script/drill --record` measured last on the parts of the lab; [how to run drills](../how-to/drills.md) says how.
*Noticed* counts from the fault until the platform itself says that something is wrong; `-`: what is gone says nothing,
so an alert has to, as its rule says. *Well again* counts from then on, or from the fault. *Lost* is how far back
accepted changes are gone. A bound that did not hold says so.

Made by `script/drill` of `results/*.json`: don't edit it.

| drill | date (UTC) | verdict | noticed | well again | lost | version | machine |
|---|---|---|---|---|---|---|---|
"""


def keep(run: LabDrillRun) -> None:
    """Keep a run as the last one of its drill, and write the page anew."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    (DIRECTORY / f"{run.drill}.json").write_bytes(msgspec.json.format(msgspec.json.encode(run)) + b"\n")
    write_page()


def write_page() -> None:
    PAGE.write_text(page(kept()))


def kept() -> list[LabDrillRun]:
    """Return the kept runs, in the order of the drills. Raises ValidationError; ValueError for a drill that is not."""
    runs = [msgspec.json.decode(file.read_bytes(), type=LabDrillRun) for file in sorted(DIRECTORY.glob("*.json"))]
    unknown = sorted({run.drill for run in runs} - set(catalogue.NAMES))
    if unknown:
        raise ValueError(f"there is no drill {unknown[0]!r}: remove {DIRECTORY.name}/{unknown[0]}.json")
    return sorted(runs, key=lambda run: catalogue.NAMES.index(run.drill))


def page(runs: Iterable[LabDrillRun]) -> str:
    """Return the page of these runs."""
    by_name = {run.drill: run for run in runs}
    lines = [_row(drill, by_name.get(drill.name)) for drill in catalogue.ALL]
    body = HEAD + "\n".join(lines) + "\n\n## Steps of the last runs\n"
    for run in by_name.values():
        body += f"\n### {run.drill}\n\n| step | took |\n|---|---|\n"
        body += "".join(f"| {_cell(step.name)} | {step.took_s:.1f} s |\n" for step in run.steps)
        body += f"\nIt failed: {_cell(run.error)}\n" if run.error else ""
    return body + "\n" + calendar() + "\n"


def calendar() -> str:
    """Return which drill is run how often, and what it promises, as a table in Markdown."""
    lines = ["## Calendar", ""]
    for every in DrillEvery:
        chosen = [drill for drill in catalogue.ALL if drill.every is every]
        if chosen:
            lines += [f"### {every.capitalize()}", "", "| drill | what | promised | runbook |", "|---|---|---|---|"]
            lines += [
                f"| `{drill.name}` | {drill.what} | {promise(drill.promised)} | {_runbook(drill)} |" for drill in chosen
            ]
            lines.append("")
    return "\n".join(lines).rstrip()


def promise(figures: DrillFigures) -> str:
    """Return a promise in words."""
    words = (("noticed within", figures.detect_s), ("well again within", figures.recover_s), ("lost:", figures.loss_s))
    return ", ".join(
        f"{what} nothing" if what == "lost:" and value == 0 else f"{what} {'at most ' * (what == 'lost:')}{value:.0f} s"
        for what, value in words
        if value is not None
    )


def _runbook(drill: LabDrill) -> str:
    return f"[{drill.runbook}](../runbooks/{drill.runbook}.md)" if drill.runbook else "none: it recovers by itself"


def _row(drill: LabDrill, run: LabDrillRun | None) -> str:
    if run is None:
        return f"| `{drill.name}` | not run yet | - | - | - | - | - | - |"
    cells = [
        _figure(getattr(run.measured, field), getattr(run.promised, field)) for field in DrillFigures.__struct_fields__
    ]
    return (
        f"| `{drill.name}` | {run.started_at:%Y-%m-%d} | {run.verdict} | {' | '.join(cells)} | {run.version} |"
        f" {run.machine} |"
    )


def _figure(measured: float | None, promised: float | None) -> str:
    if measured is None:
        return "-" if promised is None else f"not measured (at most {promised:.0f} s)"
    said = f"{measured:.1f} s"
    if promised is None:
        return said
    return f"{said} (at most {promised:.0f} s)" if measured <= promised else f"**{said}**, not at most {promised:.0f} s"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:300]
