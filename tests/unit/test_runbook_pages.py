"""The pages of runbooks: each command on them exists, each alert leads to one, and what was measured is about them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import typer.main

from lab import runbook_history, runbooks_index
from novacron.__main__ import app
from novacron.cli import command_check
from novacron.cli.drill_runs import commands_of
from novacron.runbooks import library, pages
from tests.support import documented_steps

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/runbooks"
TREE = typer.main.get_command(app)
ROLES = {"viewer", "member", "operator", "administrator"}
MACHINES = (" on the server", " on the node", " on the database's machine", " on the new server", " on the new host")


def check_arguments(words: list[str]) -> None:
    """Let the command line's own parser read the arguments of ``novacron``; what it refuses, it raises."""
    command_check.check(TREE, words)


@pytest.mark.parametrize("name", library.names(PAGES))
def test_every_command_of_a_runbook_is_one_that_the_command_line_accepts(name: str) -> None:
    for words in commands_of(library.read(name, PAGES)):
        check_arguments(words)


def test_steps_on_other_pages_are_commands_that_the_command_line_accepts() -> None:
    with_steps = 0
    for page in sorted(ROOT.glob("docs/**/*.md")):
        if PAGES in page.parents or page.name == "runbook-format.md":
            continue
        steps = documented_steps.steps_in(page.name, page.read_text())
        with_steps += bool(steps)
        for command in [command for step in steps for command in step.commands]:
            check_arguments(list(command.words[1:]))
    assert with_steps, "a page of how-tos has steps"


@pytest.mark.parametrize(
    "broken", ["node shows host-a", "node show", "node show host-a --wide", "node drain a --timeout soon", "node"]
)
def test_a_command_that_does_not_exist_is_noticed(broken: str) -> None:
    with pytest.raises((Exception, SystemExit)):
        check_arguments(broken.split())


def test_each_alert_leads_to_one_runbook_and_back() -> None:
    leads: dict[str, list[str]] = {}
    for runbook in library.everything(PAGES):
        for alert in runbook.front.alerts:
            leads.setdefault(alert, []).append(runbook.name)
        assert set(runbook.front.stop_on) <= set(runbooks_index.alerts()), runbook.name
    assert {alert: names for alert, names in leads.items() if len(names) > 1} == {}
    assert set(leads) == set(runbooks_index.alerts())


@pytest.mark.parametrize("name", library.names(PAGES))
def test_a_runbook_says_who_may_run_it_and_changes_nothing_to_look(name: str) -> None:
    runbook = library.read(name, PAGES)
    assert runbook.title and runbook.front.roles
    for role in runbook.front.roles:
        assert role in ROLES or role.endswith(MACHINES), role
    looks = [step for step in runbook.steps if step.section == "Diagnosis"]
    assert not [step.name for step in looks if step.destructive]


def test_the_image_has_the_pages_before_the_package_that_brings_them_is_installed() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    built = (ROOT / "deploy/compose/Dockerfile").read_text().partition("uv sync")[0]
    for source in wheel["force-include"]:
        assert f"COPY {source} ./{source}\n" in built, "without it, the package can't be built"


@pytest.mark.parametrize("name", library.names(PAGES))
def test_what_was_measured_is_about_the_steps_of_now(name: str) -> None:
    """Measure again: NOVACRON_RECORD_RUNBOOKS=1 script/test tests/integration/test_runbooks.py -m slow"""
    text = (PAGES / f"{name}.md").read_text()
    runbook = pages.parse(name, text)
    assert set(runbook_history.digests(text)) <= {runbook.digest}
    if "against the fault" in runbook.front.tested:
        assert runbook_history.digests(text), "says that it was executed"
