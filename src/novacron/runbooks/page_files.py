"""Where the pages of runbooks are: those that were installed, or those of the source tree."""

from __future__ import annotations

from pathlib import Path

INSTALLED = Path(__file__).parent / "installed"
SOURCE = Path(__file__).parents[3] / "docs/runbooks"


def directory() -> Path:
    """Return where the pages are."""
    return INSTALLED if INSTALLED.is_dir() else SOURCE


def names(where: Path | None = None) -> list[str]:
    """Return the names of all runbooks, such as ``incidents/node-lost``: pages in groups, not those beside them."""
    top = where or directory()
    return sorted(page.relative_to(top).with_suffix("").as_posix() for page in top.glob("*/*.md"))
