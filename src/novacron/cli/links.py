"""``novacron link``: what migrations between sites may use."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from novacron.cli import output
from novacron.cli.output import Columns, Format, Object, Output
from novacron.client import Client

app = typer.Typer(no_args_is_help=True, help="Limit what migrations between sites use of their links.")

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
WINDOW = re.compile(r"(?:([a-z,]+) )?([0-9]{2}:[0-9]{2})-([0-9]{2}:[0-9]{2})=(.+)")

One = Annotated[str, typer.Argument(help="a site", show_default=False)]
Other = Annotated[str, typer.Argument(help="the other site; the same for a limit within it", show_default=False)]


def parse_window(text: str) -> Object:
    """Return a window of ``[mon,tue ]08:00-18:00=20Mbit``. Raises typer.BadParameter."""
    found = WINDOW.fullmatch(text.strip().lower())
    days = DAYS if found is None or found[1] is None else found[1].split(",")
    if found is None or not set(days) <= set(DAYS):
        raise typer.BadParameter(
            f"{text!r} is no window: write it like 08:00-18:00=20Mbit or sat,sun 00:00-06:00=1Gbit"
        )
    return {
        "start": found[2],
        "end": found[3],
        "rate_bytes_per_s": output.parse_rate(found[4]),
        "days": [DAYS.index(day) + 1 for day in days],
    }


def windows(link: Object) -> list[str]:
    return [
        f"{','.join(DAYS[day - 1] for day in w['days'])} {w['start']}-{w['end']}: {output.rate(w['rate_bytes_per_s'])}"
        for w in link["spec"]["schedule"]
    ]


COLUMNS: Columns = {
    "SITE": lambda link: link["sites"][0],
    "OTHER SITE": lambda link: link["sites"][1],
    "RATE": lambda link: output.rate(link["spec"]["rate_bytes_per_s"]),
    "LESS (UTC)": windows,
    "AGE": lambda link: output.age(link["created_at"]),
}


@app.command("list")
def list_(output_: Output = Format.TABLE) -> None:
    """List the links that have a limit."""
    with output.errors():
        output.rows(Client().list("links"), COLUMNS, output_)


@app.command("set")
def set_(
    one: One,
    other: Other,
    rate: Annotated[str, typer.Option(help="what all migrations between them may use together, like 100Mbit")],
    less: Annotated[
        list[str] | None, typer.Option(help="a window in which it is less, in UTC: [mon,tue ]08:00-18:00=20Mbit")
    ] = None,
    output_: Output = Format.TABLE,
) -> None:
    """Limit what migrations between two sites use. Those that run change their rate at once."""
    schedule = [parse_window(text) for text in less or ()]
    with output.errors():
        output.fields(Client().limit_link(one, other, output.parse_rate(rate), schedule), COLUMNS, output_)


PROBE: Columns = {
    "FROM": lambda found: found["source"],
    "TO": lambda found: found["target"],
    "RATE": lambda found: mbit(found["rate_bytes_per_s"]),
    "AT ITS BEST": lambda found: mbit(found["best_rate_bytes_per_s"]),
    "ROUND TRIP": lambda found: f"{found['rtt_ms']:.1f} ms",
    "UNDER LOAD": lambda found: f"{found['loaded_rtt_ms']:.1f} ms",
    "SESSION OPEN AFTER": lambda found: f"{found['open_ms']:.0f} ms",
    "RETRANSMITS": lambda found: found["retransmits"],
    "STREAMS": lambda found: found["streams"],
    "DELIVERED": lambda found: f"{output.size(found['delivered_bytes'])} in {found['seconds']:.1f} s",
}


def mbit(bytes_per_s: float) -> str:
    return f"{bytes_per_s * 8 / 1e6:.1f} Mbit/s"


@app.command()
def probe(
    source: Annotated[str, typer.Argument(help="node that sends", show_default=False)],
    target: Annotated[str, typer.Argument(help="node that receives", show_default=False)],
    seconds: Annotated[float, typer.Option(min=0.5, max=30, help="how long data flows; it uses all of the link")] = 3.0,
    output_: Output = Format.TABLE,
) -> None:
    """Measure the path from one node to another, as a migration would meet it."""
    with output.errors():
        output.fields(Client().probe_link(source, target, seconds), PROBE, output_)


@app.command()
def remove(one: One, other: Other) -> None:
    """Let migrations between two sites use all there is."""
    with output.errors():
        Client().unlimit_link(one, other)
        print(f"{one} and {other}: no limit any more")
