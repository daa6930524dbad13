"""The page that lists which commands of the documentation tests execute, and which not and why."""

from __future__ import annotations

from pathlib import Path

from lab.documents import catalogue
from lab.documents.commands import ROOT, DocumentCommand, commands, pages
from lab.documents.model import PageRun
from novacron.runbooks import pages as runbook_pages
from novacron.runbooks.model import RunbookError

PAGE = ROOT / "docs/reference/executed-commands.md"
HEAD = """# Reference: commands on pages that tests execute

A test executes each page as written, on a platform of the lab, with the engine of [runbooks](runbook-format.md): every
command has to end as the page says. Names of images, sizes and hosts that are only examples are replaced. The tests
are in `tests/integration/test_documents.py`; `script/test --all` runs them.

Made by `script/generate`.

"""


def page() -> str:
    """Return the page."""
    runs = {run.path: run for run in catalogue.ALL}
    rows, reasons = list[str](), list[str]()
    total = executed = 0
    for path in pages():
        shown, run = commands(path.read_text()), runs.get(path)
        if not shown:
            continue
        left_out = [(command, _why_not(path, run, command)) for command in shown]
        done = sum(why is None for _, why in left_out)
        total, executed = total + len(shown), executed + done
        rows.append(f"| {_link(path)} | {len(shown)} | {done} |")
        if done:
            reasons += [f"| {_link(path)} | `{_shown(each)}` | {why} |" for each, why in left_out if why is not None]
        else:
            reasons.append(f"| {_link(path)} | all | {_why_not(path, run, shown[0])} |")
    lines = [
        f"{executed} of {total} commands are executed.",
        "",
        "| page | commands | executed |",
        "|---|---|---|",
        *rows,
    ]
    lines += ["", "## What is not executed", "", "| page | command | why |", "|---|---|---|", *reasons]
    return HEAD + "\n".join(lines) + "\n"


def _why_not(path: Path, run: PageRun | None, command: DocumentCommand) -> str | None:
    if run is not None:
        return run.why_not(command)
    return None if command.line in _in_steps(path) else catalogue.NOT_YET.get(path.name, catalogue.LATER)


def _in_steps(path: Path) -> set[int]:
    """Return the lines of commands in blocks that are steps themselves, with attributes."""
    lines, found, inside = path.read_text().splitlines(), set[int](), False
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            inside = line.startswith("```console ") and _is_step(line)
        elif inside and line.startswith("$ "):
            found.add(number)
    return found


def _is_step(fence: str) -> bool:
    try:
        _, _, fences = runbook_pages._structure(f"{fence}\n$ novacron\n```\n", 0)
        return bool(runbook_pages._steps("", fences))
    except RunbookError:
        return False


def _shown(command: DocumentCommand) -> str:
    return command.text.replace("|", "\\|").replace("`", "'")


def _link(path: Path) -> str:
    inside = path.relative_to(ROOT)
    target = inside.relative_to("docs") if inside.parts[0] == "docs" else Path("..") / inside
    return f"[{inside.as_posix()}](../{target.as_posix()})"
