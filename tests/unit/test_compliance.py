"""The commands that auditors are told to run: each one can be typed as it is written."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from novacron.__main__ import app

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/compliance").glob("*.md"))
OPTIONS_ONLY = re.compile(r"`(--[a-z-]+)[ `]")


def shown(page: Path, program: str) -> list[str]:
    """Return the command lines of this program that a page shows."""
    return re.findall(rf"`({program}[^`]*)`", page.read_text())


@functools.cache
def tree() -> TyperGroup:
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    return command


def parsed(arguments: list[str]) -> TyperCommand | TyperGroup:
    """Parse arguments as the command line does, without carrying anything out; return the last command in them."""
    command: TyperCommand | TyperGroup = tree()
    while True:
        context = command.make_context(command.name, arguments)
        rest = [*context._protected_args, *context.args]
        if not isinstance(command, TyperGroup) or not rest:
            return command
        _, found, arguments = command.resolve_command(context, rest)
        assert isinstance(found, TyperCommand | TyperGroup)
        command = found


def options(command: TyperCommand | TyperGroup) -> Iterator[str]:
    """Yield the options of a command and of all below it."""
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    if isinstance(command, TyperGroup):
        for below in command.commands.values():
            assert isinstance(below, TyperCommand | TyperGroup)
            yield from options(below)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_for_auditors_can_be_typed(page: Path) -> None:
    lines = shown(page, "novacron ")
    assert len(lines) > 15
    for line in lines:
        try:
            last = parsed(shlex.split(line)[1:])
        except typer.Exit:
            assert line.endswith(" --help"), line
        else:
            assert not isinstance(last, TyperGroup) or last.invoke_without_command, f"{line} is not a whole command"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_script_for_auditors_exists_with_the_tests_that_it_is_given(page: Path) -> None:
    for line in shown(page, "script/"):
        script, *arguments = shlex.split(line)
        assert (ROOT / script).is_file(), line
        assert [word for word in arguments if word.startswith("tests/") and not (ROOT / word).exists()] == [], line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_option_that_auditors_are_told_of_exists(page: Path) -> None:
    known = set(options(tree()))
    assert set(OPTIONS_ONLY.findall(page.read_text())) - known == set()
