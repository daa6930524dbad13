"""All runbooks, read from their pages."""

from __future__ import annotations

from pathlib import Path

from novacron.runbooks import pages
from novacron.runbooks.model import Runbook, RunbookError
from novacron.runbooks.page_files import directory, names

__all__ = ["directory", "everything", "for_alert", "names", "read"]


def read(name: str, where: Path | None = None) -> Runbook:
    """Return a runbook, by its name, with or without its group. Raises RunbookError."""
    top = where or directory()
    known = names(top)
    matching = [other for other in known if name in (other, other.rpartition("/")[2])]
    if len(matching) != 1:
        raise RunbookError(f"there is no runbook {name[:80]!r}: see novacron runbook list")
    return pages.parse(matching[0], (top / f"{matching[0]}.md").read_text(encoding="utf-8"))


def everything(where: Path | None = None) -> list[Runbook]:
    """Return all runbooks. Raises RunbookError."""
    return [read(name, where) for name in names(where)]


def for_alert(alert: str, where: Path | None = None) -> Runbook:
    """Return the runbook that an alert leads to. Raises RunbookError."""
    matching = [runbook for runbook in everything(where) if alert in runbook.front.alerts]
    if not matching:
        raise RunbookError(f"no runbook is for the alert {alert[:80]!r}: see novacron runbook list")
    return matching[0]
