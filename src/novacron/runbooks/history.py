"""When each runbook was executed against its fault, as its page says."""

from __future__ import annotations

import functools
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from novacron.runbooks import page_files

COLUMNS_MIN = 6
BEGIN, END = "<!-- measured: made by the test -->", "<!-- end of measured -->"
BLOCK = re.compile(f"{re.escape(BEGIN)}\n(.*?){re.escape(END)}", re.DOTALL)
ROW = re.compile(r"^\| \d{4}-\d{2}-\d{2} \|.*\|$", re.MULTILINE)
DURATION = re.compile(r"(\d+) s")
NO_ALERT = "-"
DATE = re.compile(r"^\| (\d{4}-\d{2}-\d{2}) \|", re.MULTILINE)


class MeasuredRun(NamedTuple):
    """How long it took to find one fault and to end it, the last time that a page's steps were executed against it."""

    alert: str
    """The alert that found it; ``-``: a test without Prometheus."""
    detect_s: float | None
    recover_s: float | None


def measured_runs(text: str) -> list[MeasuredRun]:
    """Return what a page says was measured. Rows of earlier releases have no column for the alert."""
    block, runs = BLOCK.search(text), list[MeasuredRun]()
    for row in ROW.findall(block[1]) if block else []:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) >= COLUMNS_MIN:
            alert = cells[COLUMNS_MIN] if len(cells) > COLUMNS_MIN else NO_ALERT
            runs.append(MeasuredRun(alert, _seconds(cells[4]), _seconds(cells[5])))
    return runs


def _seconds(cell: str) -> float | None:
    duration = DURATION.fullmatch(cell)
    return float(duration[1]) if duration else None


def tested_at(text: str) -> datetime | None:
    """Return when the steps of a page were executed last; None: never."""
    block = BLOCK.search(text)
    dates = DATE.findall(block[1]) if block else []
    return datetime.fromisoformat(max(dates)).replace(tzinfo=UTC) if dates else None


@functools.cache
def tested_at_s(where: Path | None = None) -> dict[str, float]:
    """Return of each runbook when it was executed last, in seconds since 1970; 0: never. Pages change only with the
    program, so they are read once."""
    top = where or page_files.directory()
    times = {name: tested_at((top / f"{name}.md").read_text(encoding="utf-8")) for name in page_files.names(top)}
    return {name: 0.0 if at is None else at.timestamp() for name, at in times.items()}


@functools.cache
def everything_measured(where: Path | None = None) -> dict[str, list[MeasuredRun]]:
    """Return of each runbook what its page says was measured; read once, as above."""
    top = where or page_files.directory()
    return {name: measured_runs((top / f"{name}.md").read_text(encoding="utf-8")) for name in page_files.names(top)}
