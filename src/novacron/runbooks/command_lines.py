"""Command lines of runbooks: argument lists without a shell, read as a shell would read them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from novacron.runbooks.model import RunbookError

LINE_CHARACTERS_MAX = 300
OPERATORS = frozenset("|&;<>()")
QUOTED = re.compile(r"'[^']*'")
EXPANDED = re.compile(r"[`*?~\\[]|\$[A-Za-z_{(]|(?:^|\s)#")
"""What a shell replaces outside single quotes: here it would stay as it is."""
PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9-]{0,31})\}")
VALUE = re.compile(r"[A-Za-z0-9/][A-Za-z0-9_.:@/+-]{0,254}")
"""No value begins with a dash, so none can be an option."""
PROGRAMS = ("novacron",)
"""What may run where the runbook is run."""
PROGRAMS_ELSEWHERE = (
    *PROGRAMS, "apt-get", "chronyc", "cp", "df", "dmesg", "journalctl", "pg_isready", "psql", "restic", "sha256sum",
    "systemctl",
)  # fmt: skip
"""What may run on the machines of an installation."""


def words_of(line: str, elsewhere: bool = False) -> tuple[str, ...]:
    """Return the words of a command line. Raises RunbookError if a shell would read it otherwise, or for a program
    that runbooks do not run.
    """
    if len(line) > LINE_CHARACTERS_MAX:
        raise RunbookError(f"a command line may have {LINE_CHARACTERS_MAX} characters, and this one has {len(line)}")
    if EXPANDED.search(QUOTED.sub("''", line)):
        raise RunbookError("variables, patterns and escapes are not expanded: put them into single quotes")
    lexer = shlex.shlex(line, posix=True, punctuation_chars="".join(sorted(OPERATORS)))
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        words = tuple(lexer)
    except ValueError as error:
        raise RunbookError(f"a quote is not closed ({error})") from None
    if any(word and set(word) <= OPERATORS for word in words):
        raise RunbookError("pipes, redirections and lists of commands are not allowed: check the output instead")
    programs = PROGRAMS_ELSEWHERE if elsewhere else PROGRAMS
    if not words or words[0] not in programs:
        raise RunbookError(f"runbooks run only these programs here: {', '.join(programs)}")
    for word in words:
        if not PLACEHOLDER.fullmatch(word) and PLACEHOLDER.search(word):
            raise RunbookError(f"{word!r}: a value is filled in as a whole argument only")
    return words


def placeholders(words: tuple[str, ...]) -> list[str]:
    """Return the names of the values that a command needs."""
    return [match[1] for word in words if (match := PLACEHOLDER.fullmatch(word))]


def filled(words: tuple[str, ...], values: Mapping[str, str]) -> tuple[str, ...]:
    """Return a command with its values, each of which is one argument, whatever is in it."""
    return tuple(values[match[1]] if (match := PLACEHOLDER.fullmatch(word)) else word for word in words)


def check_value(name: str, value: str) -> str:
    """Return a value. Raises RunbookError unless it is a name, a path or a number."""
    if not VALUE.fullmatch(value):
        raise RunbookError(
            f"{name}: {value[:80]!r} is not allowed: use letters, digits and _.:@/+-,"
            " and begin with a letter, a digit or /"
        )
    return value


def shown(words: tuple[str, ...]) -> str:
    """Return a command as it would be typed."""
    return " ".join(word if PLACEHOLDER.fullmatch(word) else shlex.quote(word) for word in words)
