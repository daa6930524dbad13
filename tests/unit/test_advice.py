"""Errors, statuses and findings name commands that exist, with options that they have: advice can be typed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.unit.test_docs import ROOT, commands

SOURCE = ROOT / "src/novacron"
ADVICE = re.compile(r"(?<![\w/.-])novacron((?: +[\w{}<>.@/=*'\"-]+)+)")
SENTENCES = re.compile(r"[.;:,()|`\n]( |$)|\s{2,}")


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the texts in a file, with the numbers of their lines. Values that are put in are called VALUE."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body and isinstance(node.body[0], ast.Expr)
    }  # fmt: skip
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            said = [str(part.value) if isinstance(part, ast.Constant) else "VALUE" for part in node.values]
            yield node.lineno, "".join(said)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (docstrings | parts):
            yield node.lineno, node.value


def advised(text: str) -> Iterator[str]:
    """Yield the command lines in a text."""
    for match in ADVICE.finditer(SENTENCES.sub(" \n ", text)):
        yield f"novacron {' '.join(match[1].split())}"


def objection(line: str) -> str | None:
    """Say what is wrong with a command line that starts with one of ours; None: nothing, or it is none."""
    words = re.sub(r"^novacron( --(project|context|time-zone) \S+)?", "novacron", line).split()
    if len(words) < 2 or words[1] in NO_COMMANDS:
        return None
    named = [" ".join(words[:count]) for count in range(len(words), 1, -1)]
    command = next((name for name in named if name in commands()), None)
    if command is None:
        return "there is no such command"
    options = [word.partition("=")[0] for word in words if re.fullmatch(r"--[a-z][a-z-]*(=.*)?", word)]
    unknown = [option for option in options if option not in commands()[command] and option != "--help"]
    if unknown:
        return f"{command} has no option {unknown[0]}"
    behind = words[len(command.split()) :]
    is_group = any(name.startswith(f"{command} ") for name in commands())
    if is_group and behind and re.fullmatch(r"[a-z][a-z-]*", behind[0]):
        return f"{command} has no command {behind[0]}"
    return None


NO_COMMANDS = ("VALUE", "tiny")
"""What follows the name in other texts: a command that is put in, and the guest of tests."""


def test_each_command_that_is_advised_exists_with_its_options() -> None:
    found, wrong = 0, []
    for path in sorted(SOURCE.rglob("*.py")):
        for number, text in texts(path):
            for line in advised(text):
                found += 1
                why = objection(line)
                if why is not None:
                    wrong.append(f"{path.relative_to(ROOT)}:{number}: {line}: {why}")
    assert wrong == []
    assert found > 200


def test_what_is_wrong_with_advice_is_found() -> None:
    assert objection("novacron vm stop VALUE --force") is None
    assert objection("novacron vm halt VALUE") is not None
    assert objection("novacron vm stop VALUE --quickly") is not None
    assert objection("novacron backup policy sett VALUE") is not None
    assert list(advised("first stop it (novacron vm stop VALUE), then: novacron vm start VALUE")) == [
        "novacron vm stop VALUE", "novacron vm start VALUE",
    ]  # fmt: skip
