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
HEAD = "| date | version | machine | steps | until it is found | until it is well again |\n|---|---|---|---|---|---|\n"


def measured(text: str) -> str | None:
    """Return the measured part of a page; None: it has none."""
    found = BLOCK.search(text)
    return found[1] if found else None


def digests(text: str) -> list[str]:
    """Return the digests of the steps that were measured on a page."""
    return DIGEST.findall(measured(text) or "")


def record(page: Path, runbook: Runbook, found_s: float | None, recovered_s: float) -> None:
    """Write what was measured into a page, if that is wanted."""
    if RECORD not in os.environ:
        return
    found = "-" if found_s is None else f"{found_s:.0f} s"
    machine = f"{os.uname().machine}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.0f}, emulated guests"
    row = f"| {datetime.now(UTC):%Y-%m-%d} | {__version__} | {machine} | `{runbook.digest}` | {found} |"
    block = f"{BEGIN}\n{HEAD}{row} {recovered_s:.0f} s |\n{END}"
    page.write_text(BLOCK.sub(lambda _: block, page.read_text()))
