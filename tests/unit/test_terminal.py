"""What others have written can't control the terminal on which it is shown."""

from __future__ import annotations

import ast
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import novacron
from novacron.cli import output
from novacron.cli.output import OutputFormat
from novacron.terminal import safe, say, say_json, say_lines
from tests.support.sources import parsed

SOURCES = Path(novacron.__file__).parent
HOSTILE = (
    "\x1b]0;title\a",
    "\x1b[2J",
    "a\nerror: b",
    "a\rb",
    "\u202egnp.exe",
    "\u2066a",
    "\x9b31m",
    "\u2028",
    "\x7f\b",
)
PRINTING = ("print", "typer.echo", "typer.secho", "click.echo", "sys.stdout.write", "sys.stderr.write")
WHERE = ("cli", "local", "client", "__main__.py")


def obeyed(text: str) -> bool:
    """Say whether something in a line would not just be shown."""
    return any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") for c in text)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_others_wrote_is_shown_and_not_obeyed(hostile: str, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"name": hostile, "list": [hostile]}
    columns: output.Columns = {"NAME": lambda r: r["name"], "LIST": lambda r: r["list"]}
    output.rows([row], columns, OutputFormat.TABLE)
    output.fields(row, columns, OutputFormat.TABLE)
    output.fail(hostile, 1)
    say(hostile)
    say_lines(hostile.replace("\n", ""))
    printed = capsys.readouterr()
    lines = (printed.out + printed.err).removesuffix("\n").split("\n")
    assert len(lines) == 7 and not any(map(obeyed, lines)), lines
    output.rows([row], columns, OutputFormat.JSON)
    shown = capsys.readouterr().out
    assert not any(map(obeyed, shown.split("\n"))) and json.loads(shown) == [row]


@given(st.text())
def test_any_text_is_one_harmless_line(text: str) -> None:
    assert not obeyed(safe(text))
    safe(text).encode()


def test_ordinary_text_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("web-1", "Grüße, 日本語 – ok", "a b", "naïve café", "👍"):
        assert safe(text) == text
    say_json({"a": "é"})
    assert capsys.readouterr().out == '{\n  "a": "\\u00e9"\n}\n'


def test_all_commands_print_through_the_one_helper() -> None:
    wrong = []
    for where in WHERE:
        path = SOURCES / where
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            for node in ast.walk(parsed(file)):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in PRINTING:
                    wrong.append(f"{file.relative_to(SOURCES)}:{node.lineno}: use novacron.terminal")
    assert not wrong, "\n".join(wrong)
