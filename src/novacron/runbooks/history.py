"""When each runbook was executed against its fault, as its page says."""

from __future__ import annotations

import functools
import re
from datetime import UTC, datetime
from pathlib import Path

from novacron.runbooks import page_files

BEGIN, END = "<!-- measured: made by the test -->", "<!-- end of measured -->"
BLOCK = re.compile(f"{re.escape(BEGIN)}\n(.*?){re.escape(END)}", re.DOTALL)
DATE = re.compile(r"^\| (\d{4}-\d{2}-\d{2}) \|", re.MULTILINE)


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
