"""The start of a command: only what it needs is loaded, and it is the same command as in the whole tree."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from enum import StrEnum
from typing import Any

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st
from typer._coercion import RuntimeParam, TypeDescriptor, build_runtime_param, resolve_type_descriptor
from typer.core import TyperCommand, TyperGroup
from typer.models import OptionInfo

from novacron import entry
from novacron.__main__ import app
from novacron.cli import names, quick_values
from novacron.client import Config
from novacron.client.protocol import HttpReply

SLOW_TO_LOAD = ("pydantic", "rich", "urllib3", "httpx", "asyncio", "novacron.cli.nodes", "novacron.service_options")


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


def whole() -> TyperGroup:
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    return command


def test_a_command_loads_nothing_that_it_does_not_need() -> None:
    program = (
        "import sys; sys.argv = ['novacron', 'vm', 'list']\n"
        "from novacron import entry\n"
        "try: entry.main()\n"
        f"finally: print([name for name in {SLOW_TO_LOAD!r} if name in sys.modules])\n"
    )
    environment = {**os.environ, "NOVACRON_URL": "http://127.0.0.1:9", "NOVACRON_TOKEN": "t"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout == "[]\n", done.stderr
    assert "no answer from http://127.0.0.1:9" in done.stderr


def test_every_group_that_needs_the_api_alone_begins_fast() -> None:
    groups = {name for name, command in whole().commands.items() if isinstance(command, TyperGroup)}
    assert groups - entry.GROUPS.keys() == {"database", "server", "setup"}, "these work on the server's machine"


def test_a_command_that_is_loaded_alone_is_the_one_of_the_whole_tree() -> None:
    alone = 0
    for group, command in whole().commands.items():
        for name, known in (command.commands if isinstance(command, TyperGroup) else {}).items():
            small = entry.narrowed(["--project", "web", group, name, "x"])
            if small is None:
                continue
            found = typer.main.get_command(small)
            assert isinstance(found, TyperGroup) and list(found.commands) == [group]
            below = found.commands[group]
            assert isinstance(below, TyperGroup) and list(below.commands) == [name]
            same = below.commands[name]
            assert isinstance(same, TyperCommand) and same.help == known.help
            assert [param.opts for param in same.params] == [param.opts for param in known.params]
            alone += 1
    assert alone > 80


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["vm", "list"], ("vm", "list")),
        (["--project", "vm", "node", "list"], ("node", "list")),
        (["--project=vm", "node", "--help"], ("node", "--help")),
        (["--context", "a", "vm", "list", "-o", "json"], ("vm", "list")),
        (["vm"], None),
        (["--project"], None),
        ([], None),
    ],
)
def test_a_command_is_found_behind_the_options_of_all_commands(words: list[str], named: object) -> None:
    assert entry.command_in(words) == named


@pytest.mark.parametrize(
    "words", [["up"], ["drill", "run"], ["vm", "lits"], ["vm", "--help"], ["server", "x"], ["--help"], ["x", "y"]]
)
def test_anything_else_takes_the_whole_tree(words: list[str]) -> None:
    assert entry.narrowed(words) is None


def outcome(param: RuntimeParam, value: object) -> object:
    owner: Any = typer.core.TyperOption(param_decls=["--x"], type_descriptor=resolve_type_descriptor(str, OptionInfo()))
    try:
        return param.coerce(value, owner, None)  # type: ignore[arg-type]  # no context is needed
    except Exception as error:
        return type(error), str(error)


@given(
    st.sampled_from([str, int, float, bool, Colour, list[str]]),
    st.one_of(
        st.text(max_size=8),
        st.integers().map(str),
        st.floats(allow_nan=False, allow_infinity=False).map(str),
        st.sampled_from(["red", "RED", "yes", "-1"]),
    ),
    st.sampled_from([(None, None), (1, None), (0, 10), (-5, 5)]),
)
def test_values_are_read_as_typer_reads_them(annotation: Any, text: str, limits: tuple[int | None, int | None]) -> None:
    low, high = limits if annotation in (int, float) else (None, None)
    descriptor: TypeDescriptor = resolve_type_descriptor(annotation, OptionInfo(min=low, max=high))
    value = [text, text] if annotation == list[str] else text
    quick, slow = quick_values.quick(descriptor), build_runtime_param(descriptor)
    expected = outcome(slow, value)
    if isinstance(expected, float) and not math.isfinite(expected):
        return
    assert repr(outcome(quick, value)) == repr(expected)


@pytest.mark.parametrize("number", ["inf", "-inf", "nan", "1e400"])
def test_numbers_are_finite(number: str) -> None:
    quick = quick_values.quick(resolve_type_descriptor(float, OptionInfo()))
    assert outcome(quick, number) == (typer.BadParameter, f"{number} is not a finite number")


def test_names_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def send(self: object, method: str, path: str, headers: dict[str, str], timeout_s: float) -> HttpReply:
        asked.append(path)
        return HttpReply(200, b'{"items": [{"name": "web"}, {"name": "db"}], "next": null}')

    monkeypatch.setattr("novacron.client.sync.transport.Transport.send", send)
    monkeypatch.setattr("novacron.client.config.load_config", lambda: Config("http://api.invalid", "t", "", "blue"))
    assert names.names_of("vms")("w") == ["web"]
    assert names.names_of("sites")("") == ["web", "db"]
    assert asked == ["/api/v1/vms?fields=name&limit=200&name=w%2A&project=blue", "/api/v1/sites?project=blue"]


def test_a_shell_gets_no_words_from_an_api_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVACRON_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NOVACRON_TOKEN", "t")
    assert names.names_of("vms")("w") == []
