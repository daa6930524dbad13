"""Whether the output of a command is as a runbook expects it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from novacron.runbooks.command_lines import PLACEHOLDER
from novacron.runbooks.model import ExpectedLine, RunbookError

ANYTHING = "..."
LINES_MAX, CHARACTERS_MAX = 10_000, 2_000
"""Only so much of the output is looked at, and so much of each line."""


def expected_line(text: str) -> ExpectedLine:
    """Return what a line below a command says. Raises RunbookError."""
    sign, _, rest = text.partition(" ")
    if sign == "~":
        try:
            re.compile(rest)
        except re.error as error:
            raise RunbookError(f"{rest!r} is no regular expression: {error}") from None
        return ExpectedLine(rest, pattern=True)
    return ExpectedLine(rest, absent=True) if sign == "!" else ExpectedLine(text)


def with_names(line: ExpectedLine, values: Mapping[str, str]) -> ExpectedLine:
    """Return an expected line with the values that it names; a regular expression stays as it is."""
    if line.pattern:
        return line
    text = PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), line.text)
    return msgspec.structs.replace(line, text=text)


def missing(expected: Sequence[ExpectedLine], output: str) -> ExpectedLine | None:
    """Return the first expected line that the output does not keep to; None: it is as expected.

    A line is expected whole; ``...`` is anything within it, and spaces count as one. Lines are found in the order in
    which they are expected, with others between them.
    """
    lines = [" ".join(line[:CHARACTERS_MAX].split()) for line in output.splitlines()[:LINES_MAX]]
    begin = 0
    for line in expected:
        pattern = re.compile(line.text if line.pattern else _literal(line.text))
        matches = pattern.search if line.pattern else pattern.fullmatch
        position = next((n for n in range(0 if line.absent else begin, len(lines)) if matches(lines[n])), None)
        if (position is None) is not line.absent:
            return line
        begin = begin if position is None else position + 1
    return None


def _literal(text: str) -> str:
    return ".*?".join(re.escape(" ".join(part.split())) for part in text.split(ANYTHING))
