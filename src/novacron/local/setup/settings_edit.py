"""Changes single settings of a settings file; every other line of it stays as its author wrote it."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from novacron import settings_file


class CannotEdit(Exception):
    """A settings file is written in a way that can't be changed by a program."""


def as_in_file(value: object) -> object:
    """Return a value as reading it from a file gives it. Raises ValueError for one that TOML can't have."""
    return tomllib.loads(f"value = {settings_file.toml(value)}")["value"]


def edited(text: str, values: Mapping[str, object]) -> str:
    """Return a settings file that has these values.

    A setting that is there is replaced; one that is not is added below the comment that explains it, or at the end.
    Raises CannotEdit, ValueError for a file or a value that is no TOML.
    """
    lines = _lines(text)
    for name, value in values.items():
        statement = f"{name} = {settings_file.toml(value)}"
        place = next(_statements(lines, name), None)
        if place is not None:
            lines[place[0] : place[1]] = [statement]
        else:
            lines.insert(_place(lines, name), statement)
    changed = "".join(f"{line}\n" for line in lines)
    expected = {**tomllib.loads(text), **{name: as_in_file(value) for name, value in values.items()}}
    if _read(changed) != expected:
        raise CannotEdit(f"its format can't be edited automatically: set {', '.join(values)} by hand")
    return changed


def _lines(text: str) -> list[str]:
    """Split at what ends a line in TOML; ``splitlines`` also splits at characters that may stand in a string."""
    return text.removesuffix("\n").split("\n") if text else []


def _read(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def _statements(lines: list[str], name: str) -> Iterator[tuple[int, int]]:
    """Yield where statements begin and end that set a value: the fewest lines that are TOML by themselves."""
    begins = re.compile(rf"""\s*(?P<quote>["']?){re.escape(name)}(?P=quote)\s*=""")
    for first, line in enumerate(lines):
        if begins.match(line):
            for end in range(first + 1, len(lines) + 1):
                if _read("\n".join(lines[first:end])) is not None:
                    yield first, end
                    break


def _place(lines: list[str], name: str) -> int:
    """Return before which line a new setting goes."""
    example = re.compile(rf"#\s*{re.escape(name)}\s*=")
    return next((number + 1 for number, line in enumerate(lines) if example.match(line)), len(lines))


def difference(path: str, before: str, after: str) -> list[str]:
    """Return what changes in a file, as ``diff -u`` shows it, without passwords."""
    names = f"{path} (as it is)", f"{path} (set up)"
    lines = difflib.unified_diff(_lines(before), _lines(after), *names, n=0, lineterm="")
    return [settings_file.without_password(line) for line in lines]
