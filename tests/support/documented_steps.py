"""Steps on pages of documentation that are no runbooks, in the same form."""

from __future__ import annotations

from novacron.runbooks import pages
from novacron.runbooks.model import RunbookStep


def steps_in(name: str, text: str) -> list[RunbookStep]:
    """Return the steps of any page of Markdown. Raises RunbookError."""
    _, _, fences = pages._structure(text, 0)
    return pages._steps(name, fences)
