"""The commands that a page shows: whatever follows a prompt in a block of the language ``console``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PROMPTS = ("# ", "$ ")
COMMENT = re.compile(r"(?:\s{2,}#|\s+#\s|\s{2,}\().*$")
"""What a page says beside a command."""


class DocumentCommand(NamedTuple):
    """A command on a page, with the lines that the page shows below it."""

    line: int
    section: str
    text: str
    output: tuple[str, ...] = ()


def pages() -> list[Path]:
    """Return the pages that show people how to do something."""
    return [ROOT / "README.md", ROOT / "docs/tutorial.md", *sorted((ROOT / "docs/how-to").glob("*.md"))]


def commands(text: str) -> list[DocumentCommand]:
    """Return the commands of a page, in their order."""
    found, section = list[DocumentCommand](), ""
    tokens = MarkdownIt("commonmark").parse(text)
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open" and following is not None:
            section = following.content
        elif token.type == "fence" and token.info.split(" ")[0] == "console" and token.map is not None:
            found += _of_block(token.content, section, token.map[0] + 2)
    return found


def _of_block(text: str, section: str, first_line: int) -> Iterator[DocumentCommand]:
    lines, number = text.splitlines(), 0
    while number < len(lines):
        line, begun = lines[number], number
        number += 1
        if not line.startswith(PROMPTS):
            continue
        while line.endswith("\\") and number < len(lines):
            line = line[:-1].rstrip() + " " + lines[number].strip()
            number += 1
        below = number
        while number < len(lines) and not lines[number].startswith(PROMPTS):
            number += 1
        yield DocumentCommand(
            first_line + begun, section, COMMENT.sub("", line[2:]).strip(), tuple(lines[below:number])
        )
