"""Display names, descriptions and tags: the same options and columns for every kind of object."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import options
from novacron.cli.output import Columns, Object

TagFilter = Annotated[
    str | None,
    typer.Option("--tag", help="only objects with this tag; separate several with commas: objects with all of them"),
]


def parse_tags(text: str) -> list[str]:
    """Return the tags that an option names: none, if it is empty."""
    return [tag.strip() for tag in text.split(",")] if text.strip() else []


OPTIONS = (
    options.option("display_name", str, help="display name, in any script; empty removes it"),
    options.option("description", str, help="description"),
    options.option("tags", str, convert=parse_tags, help="tags, separated by commas; they replace the current ones"),
)
Changes = Annotated[Object, OPTIONS]
COLUMNS: Columns = {
    "DISPLAY NAME": lambda item: item["display_name"],
    "DESCRIPTION": lambda item: item["description"],
    "TAGS": lambda item: item["tags"],
}


def filters(tag: str | None, **others: str | None) -> Object:
    """Return the filters of a list that were given."""
    return {name: value for name, value in {"tag": tag, **others}.items() if value}


def check_given(changes: Object) -> None:
    """Raise typer.BadParameter when no option says what to change."""
    if not changes:
        raise typer.BadParameter("nothing to change: specify an option")
