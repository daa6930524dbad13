"""``novacron events``: what happened, and what is happening."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from novacron.cli import output
from novacron.cli.output import Columns, Output, OutputFormat
from novacron.client import Client
from novacron.terminal import say

COLUMNS: Columns = {
    "TIME": lambda e: (e["last_at"] or e["at"])[:19].replace("T", " "),
    "KIND": lambda e: e["kind"],
    "NAME": lambda e: e["name"],
    "REASON": lambda e: e["reason"],
    "BY": lambda e: e["actor"],
    "MESSAGE": lambda e: e["message"] + (f" ({e['count']} times)" if e["count"] > 1 else ""),
}


def events(
    object: Annotated[str | None, typer.Option(help="only events of the object with this name or id")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="keep showing events until interrupted")] = False,
    limit: Annotated[int, typer.Option(min=1, help="how many events")] = 50,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Show events, newest first; with --follow, new ones as they happen."""
    with output.errors():
        client = Client()
        if not follow:
            filters = {"object": object} if object else {}
            output.rows(client.list("events", limit=limit, **filters), COLUMNS, output_)
            return
        for _, event in client.stream(kinds="event"):
            if event.get("deleted") or (object and object not in (event["object"], event["name"])):
                continue
            if output_ is OutputFormat.JSON:
                say(json.dumps(event), flush=True)
            elif output_ is not OutputFormat.TABLE:
                output.show([event], output_)
            else:
                say("  ".join(output.text(get(event)) for get in COLUMNS.values()), flush=True)
