"""Text on terminals: what others have written (names, descriptions, events, errors) can't control them.

Escape sequences, newlines and marks that change the direction of writing are shown, not obeyed. All commands print
through here.
"""

from __future__ import annotations

import json
import sys
import unicodedata

HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode's categories of controls, formats (such as bidirectional marks), surrogates, and separators of lines."""
CONSOLE = frozenset("\n\t")


def safe(text: str, kept: frozenset[str] = frozenset()) -> str:
    """Return a text with all that could control a terminal escaped, but for what is ``kept``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept or not _controls(c) else _escaped(c) for c in text)


def _controls(character: str) -> bool:
    return unicodedata.category(character) in HIDDEN


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def say(text: str = "", *, err: bool = False, flush: bool = False) -> None:
    """Print one line for people."""
    print(safe(text), file=sys.stderr if err else sys.stdout, flush=flush)


def clear() -> None:
    """Clear the terminal, for output that is shown again and again."""
    sys.stdout.write("\x1b[H\x1b[2J")


def say_json(value: object) -> None:
    """Print JSON for programs: all but printable ASCII is escaped in its own way."""
    print(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))


def say_yaml(value: object) -> None:
    """Print YAML for people and programs: all but printable ASCII is escaped in its own way."""
    import yaml  # loaded only by who wants it

    print(yaml.safe_dump(value, sort_keys=False, allow_unicode=False), end="")


def say_lines(text: str) -> None:
    """Print a guest's console output: its lines, and nothing that it could do to the terminal."""
    kept = safe(text, CONSOLE)
    print(kept, end="" if kept.endswith("\n") else "\n")
