"""The measured part of a runbook's testing history: when its steps were executed against the real fault, and how long
that took. Tests write it when ``NOVACRON_RECORD_RUNBOOKS`` is set; otherwise pages stay as they are."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path

from novacron import __version__
from novacron.runbooks.history import BEGIN, BLOCK, END
from novacron.runbooks.model import Runbook

RECORD = "NOVACRON_RECORD_RUNBOOKS"
DIGEST = re.compile(r"\| `([0-9a-f]{16})` \|")
HEAD = (
    "| date | version | machine | steps | until it is found | until it is well again | alert |\n"
    "|---|---|---|---|---|---|---|\n"
)
NO_ALERT = "-"
ROW = re.compile(r"^\| \d{4}-.*\|$", re.MULTILINE)


def measured(text: str) -> str | None:
    """Return the measured part of a page; None: it has none."""
    block = BLOCK.search(text)
    return block[1] if block else None


def digests(text: str) -> list[str]:
    """Return the digests of the steps that were measured on a page."""
    return DIGEST.findall(measured(text) or "")


def alerts(text: str, digest: str) -> set[str]:
    """Return the alerts whose fault a page's steps of this digest were executed against."""
    rows = [row for row in ROW.findall(measured(text) or "") if DIGEST.findall(row) == [digest]]
    return {_alert_of(row) for row in rows} - {NO_ALERT}


def record(page: Path, runbook: Runbook, detected_s: float | None, recovered_s: float, alert: str = NO_ALERT) -> None:
    """Write what was measured into a page, if that is wanted. Rows of other alerts stay if they are about the steps
    of now."""
    if RECORD not in os.environ:
        return
    detected = "-" if detected_s is None else f"{detected_s:.0f} s"
    machine = f"{os.uname().machine}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.0f}, emulated guests"
    row = f"| {datetime.now(UTC):%Y-%m-%d} | {__version__} | {machine} | `{runbook.digest}` | {detected} |"
    page.write_text(with_row(page.read_text(), runbook.digest, f"{row} {recovered_s:.0f} s | {alert} |"))


def with_row(text: str, digest: str, row: str) -> str:
    """Return a page with a row in its measured part, in the place of that of the same alert."""
    kept = [
        each if _alert_of(each) != NO_ALERT or each.endswith(f" {NO_ALERT} |") else f"{each} {NO_ALERT} |"
        for each in ROW.findall(measured(text) or "")
        if DIGEST.findall(each) == [digest] and _alert_of(each) != _alert_of(row)
    ]
    rows = "\n".join(sorted([*kept, row], key=_alert_of))
    block = f"{BEGIN}\n{HEAD}{rows}\n{END}"
    return BLOCK.sub(lambda _: block, text) if BLOCK.search(text) else f"{text.rstrip()}\n\n{block}\n"


def _alert_of(row: str) -> str:
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    return cells[6] if len(cells) > 6 else NO_ALERT
