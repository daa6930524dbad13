"""The commands of README, tutorial and how-to pages, executed on a real platform by the engine of runbooks."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.documents import catalogue
from lab.documents.execution import PageExecution, PageFailed, clear
from lab.documents.model import PageRun
from lab.platform import Platform

BY_COST = [
    pytest.param(run, marks=() if run.quick else pytest.mark.slow, id=Path(run.page).stem) for run in catalogue.ALL
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("run", BY_COST)
def test_the_commands_of_a_page_do_what_it_says(run: PageRun, site: Platform, tmp_path: Path) -> None:
    execution = PageExecution(run, site, tmp_path)
    try:
        execution.execute()
    finally:
        clear(site)
    assert execution.executed == len(run.commands()) > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("run", catalogue.ALL, ids=lambda run: Path(run.page).stem)
def test_a_page_with_a_broken_command_is_noticed(run: PageRun, site: Platform, tmp_path: Path) -> None:
    """The last command of its first section is broken: those before it still work."""
    text = run.path.read_text()
    first = next(command for command in run.commands() if command.text.startswith("novacron "))
    lines = text.splitlines()
    assert "novacron " in lines[first.line - 1]
    lines[first.line - 1] = lines[first.line - 1].replace("novacron ", "novacron no-such-", 1)
    try:
        with pytest.raises(PageFailed, match=f"line {first.line}: "):
            PageExecution(run, site, tmp_path).execute("\n".join(lines))
    finally:
        clear(site)
