"""``novacron events``: what happened, and what is happening."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

import typer

from novacron.cli import options, output
from novacron.cli.lists import Listing
from novacron.cli.output import Columns, Object
from novacron.client import Client

COLUMNS: Columns = {
    "TIME": lambda e: output.when(e["last_at"] or e["at"]),
    "KIND": lambda e: e["kind"],
    "NAME": lambda e: e["name"],
    "REASON": lambda e: e["reason"],
    "BY": lambda e: e["actor"],
    "MESSAGE": lambda e: e["message"] + (f" ({e['count']} times)" if e["count"] > 1 else ""),
}


@options.expand
def events(
    object: Annotated[str | None, typer.Option(help="only events of the object with this name or id")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="the same as --watch")] = False,
    listing: Listing = Listing(limit=50),
) -> None:
    """Show events, newest first; with --follow or --watch, new ones as they happen."""
    with output.errors():
        show(Client(), object, dataclasses.replace(listing, watch=listing.watch or follow))


def show(client: Client, ref: str | None, listing: Listing) -> None:
    """Show the events of an object, or of all. Raises ApiError, Unreachable, typer.BadParameter."""
    filters = {"object": ref} if ref else {}
    if listing.watch:
        listing.show_stream(lambda: _new(client, ref), COLUMNS)
    else:
        listing.show_log(lambda: client.list("events", listing.page, **filters), COLUMNS)


def _new(client: Client, ref: str | None) -> Iterator[Object]:
    for _, event in client.stream(kinds="event"):
        if not event.get("deleted") and ref in (None, event["object"], event["name"]):
            yield event
