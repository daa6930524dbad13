"""``novacron link``: the bandwidth of migrations between sites."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from novacron.cli import options, output
from novacron.cli.lists import Listing
from novacron.cli.names import names_of
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.client import Client
from novacron.terminal import say

app = typer.Typer(no_args_is_help=True, help="Limit the bandwidth of migrations between sites.")

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
WINDOW = re.compile(r"(?:([a-z,]+) )?([0-9]{2}:[0-9]{2})-([0-9]{2}:[0-9]{2})=(.+)")

Site = Annotated[
    str, typer.Argument(metavar="site", help="a site", autocompletion=names_of("sites"), show_default=False)
]
OtherSite = Annotated[
    str,
    typer.Argument(metavar="other", help="the other site, or the same one for a limit within it", show_default=False),
]


def parse_window(text: str) -> Object:
    """Return a window of ``[mon,tue ]08:00-18:00=20Mbit``. Raises typer.BadParameter."""
    match = WINDOW.fullmatch(text.strip().lower())
    days = DAYS if match is None or match[1] is None else match[1].split(",")
    if match is None or not set(days) <= set(DAYS):
        raise typer.BadParameter(
            f"{text!r} is not a time window: write it like 08:00-18:00=20Mbit or sat,sun 00:00-06:00=1Gbit"
        )
    return {
        "start": match[2],
        "end": match[3],
        "rate_bytes_per_s": output.parse_rate(match[4]),
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
@options.expand
def list_(listing: Listing = Listing()) -> None:
    """List the links that have a limit."""
    listing.show("links", COLUMNS)


@app.command("set")
def set_(
    site: Site,
    other: OtherSite,
    rate: Annotated[str, typer.Option(help="combined limit of all migrations between them, such as 100Mbit")],
    less: Annotated[
        list[str] | None, typer.Option(help="time window with a lower limit, in UTC: [mon,tue ]08:00-18:00=20Mbit")
    ] = None,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Limit the bandwidth of migrations between two sites, including running ones."""
    schedule = [parse_window(text) for text in less or ()]
    with output.errors():
        output.fields(Client().limit_link(site, other, output.parse_rate(rate), schedule), COLUMNS, output_)


PROBE: Columns = {
    "FROM": lambda path: path["source"],
    "TO": lambda path: path["target"],
    "RATE": lambda path: mbit(path["rate_bytes_per_s"]),
    "AT ITS BEST": lambda path: mbit(path["best_rate_bytes_per_s"]),
    "ROUND TRIP": lambda path: f"{path['rtt_ms']:.1f} ms",
    "UNDER LOAD": lambda path: f"{path['loaded_rtt_ms']:.1f} ms",
    "SESSION OPEN AFTER": lambda path: f"{path['open_ms']:.0f} ms",
    "RETRANSMITS": lambda path: path["retransmits"],
    "STREAMS": lambda path: path["streams"],
    "DELIVERED": lambda path: f"{output.size(path['delivered_bytes'])} in {path['seconds']:.1f} s",
}


def mbit(bytes_per_s: float) -> str:
    return f"{bytes_per_s * 8 / 1e6:.1f} Mbit/s"


@app.command()
def probe(
    source: Annotated[
        str, typer.Argument(help="node that sends", autocompletion=names_of("nodes"), show_default=False)
    ],
    target: Annotated[
        str, typer.Argument(help="node that receives", autocompletion=names_of("nodes"), show_default=False)
    ],
    seconds: Annotated[
        float, typer.Option(min=0.5, max=30, help="seconds to send data for; it uses the whole link")
    ] = 3.0,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Measure the path from one node to another, as a migration would use it."""
    with output.errors():
        output.fields(Client().probe_link(source, target, seconds), PROBE, output_)


@app.command()
def remove(site: Site, other: OtherSite) -> None:
    """Remove the limit between two sites."""
    with output.errors():
        Client().unlimit_link(site, other)
        say(f"{site} and {other}: the limit is removed")
