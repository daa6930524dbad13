"""Commands on pages of documentation: how they are found, and that each is executed or has a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.documents import catalogue, table
from lab.documents.commands import ROOT, commands, pages
from lab.documents.execution import PageExecution
from lab.documents.model import PageRun
from novacron.runbooks import command_lines

PAGE = """# A page

## Begin

```console
# novacron vm create web --image tiny \\
    --memory 128          # beside the command
web: running on host-a
$ novacron backup create web     (asks)
backup-51d0c2b7e9a3f468: kept
```

```text
$ novacron is no command here
```

## End

```console
$ novacron vm list --tag '#1'
```
"""


def test_commands_are_found_with_their_lines_sections_and_output() -> None:
    found = commands(PAGE)
    assert [(each.line, each.section, each.text) for each in found] == [
        (6, "Begin", "novacron vm create web --image tiny --memory 128"),
        (9, "Begin", "novacron backup create web"),
        (20, "End", "novacron vm list --tag '#1'"),
    ]
    assert [each.output for each in found] == [
        ("web: running on host-a",), ("backup-51d0c2b7e9a3f468: kept",), (),
    ]  # fmt: skip


@pytest.mark.parametrize("run", catalogue.ALL, ids=lambda run: Path(run.page).stem)
def test_a_page_is_executed_by_the_engine_of_runbooks_and_each_reason_is_about_a_command(run: PageRun) -> None:
    shown = commands(run.path.read_text())
    for command in run.commands():
        command_lines.words_of(command.text)
    for before in (line for lines in run.given.values() for line in lines):
        command_lines.words_of(before)
    unused = [text for text in run.left_out if not any(command.text.startswith(text) for command in shown)]
    unused += [text for text in run.instead if not any(text in command.text for command in shown)]
    typed = {command.text for command in run.commands()}
    unused += [text for text in {**run.given, **run.ends_with} if text not in typed]
    assert unused == [], "no such command is on the page"


def test_each_command_of_the_documentation_is_executed_or_listed_with_a_reason() -> None:
    listed = table.page()
    for path in pages():
        if commands(path.read_text()):
            assert f"[{path.relative_to(ROOT)}]" in listed
    assert {Path(name).name for name in catalogue.NOT_YET} <= {path.name for path in pages()}


def test_an_id_on_a_page_stands_for_the_one_that_came(tmp_path: Path) -> None:
    execution = PageExecution(catalogue.TUTORIAL, None, tmp_path)  # type: ignore[arg-type]
    create, again = commands(PAGE)[1], commands(PAGE)[1]._replace(output=("backup-7e1f0a5d3c92b846: kept",))
    execution._learn(create, "backup-aaaaaaaaaaaaaaaa: kept\n")
    execution._learn(again, "backup-bbbbbbbbbbbbbbbb: kept, after backup-aaaaaaaaaaaaaaaa\n")
    assert execution._ids == {
        "backup-51d0c2b7e9a3f468": "backup-aaaaaaaaaaaaaaaa", "backup-7e1f0a5d3c92b846": "backup-bbbbbbbbbbbbbbbb",
    }  # fmt: skip
