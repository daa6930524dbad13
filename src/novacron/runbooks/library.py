"""All runbooks: those that were installed, or those of the source tree."""

from __future__ import annotations

from pathlib import Path

from novacron.runbooks import pages
from novacron.runbooks.model import Runbook, RunbookError

INSTALLED = Path(__file__).parent / "installed"
SOURCE = Path(__file__).parents[3] / "docs/runbooks"


def directory() -> Path:
    """Return where the pages are."""
    return INSTALLED if INSTALLED.is_dir() else SOURCE


def names(where: Path | None = None) -> list[str]:
    """Return the names of all runbooks, such as ``incidents/node-lost``: pages in groups, not those beside them."""
    top = where or directory()
    return sorted(page.relative_to(top).with_suffix("").as_posix() for page in top.glob("*/*.md"))


def read(name: str, where: Path | None = None) -> Runbook:
    """Return a runbook, by its name, with or without its group. Raises RunbookError."""
    top = where or directory()
    known = names(top)
    found = [other for other in known if name in (other, other.rpartition("/")[2])]
    if len(found) != 1:
        raise RunbookError(f"there is no runbook {name[:80]!r}: see novacron runbook list")
    return pages.parse(found[0], (top / f"{found[0]}.md").read_text(encoding="utf-8"))


def everything(where: Path | None = None) -> list[Runbook]:
    """Return all runbooks. Raises RunbookError."""
    return [read(name, where) for name in names(where)]


def for_alert(alert: str, where: Path | None = None) -> Runbook:
    """Return the runbook that an alert leads to. Raises RunbookError."""
    found = [runbook for runbook in everything(where) if alert in runbook.front.alerts]
    if not found:
        raise RunbookError(f"no runbook is for the alert {alert[:80]!r}: see novacron runbook list")
    return found[0]
