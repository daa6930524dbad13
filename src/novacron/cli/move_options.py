"""How a VM is to be moved, and when: what ``novacron vm migrate`` takes."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import typer

from novacron.cli import options, output
from novacron.cli.backup_policies import DURATION, parse_duration
from novacron.cli.output import Object
from novacron.client import Client
from novacron.client.choices import MigrationPolicy
from novacron.terminal import say

CLOCK = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")


def parse_moment(text: str) -> str:
    """Return when ``22:00`` (the next one), ``2h`` (from now) or ``2026-12-01T22:00`` is, as the API takes it.

    Raises typer.BadParameter.
    """
    text, now = text.strip(), datetime.now(UTC)
    if clock := CLOCK.fullmatch(text):
        here = now.astimezone(output.time_zone())
        moment = here.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
        moment = moment if moment > here else moment + timedelta(days=1)
    elif DURATION.fullmatch(text.lower()) and not text.isdecimal():
        moment = now + timedelta(seconds=parse_duration(text))
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise typer.BadParameter(
                f"{text!r} is not a time: write it like 22:00, 2h (from now) or 2026-12-01T22:00"
            ) from None
        if moment.tzinfo is None and (zone := output.time_zone()) is not None:
            moment = moment.replace(tzinfo=zone)
    return moment.astimezone(UTC).isoformat(timespec="seconds")


MIGRATE_OPTIONS = (
    options.option("target", str, "--to", help="target node; by default chosen by the platform"),
    options.option(
        "rate_limit_bytes_per_s", str, "--max-rate", convert=output.parse_rate,
        help="limit of the migration's bandwidth, such as 50Mbit",
    ),
    options.option(
        "weight", int, default=1, min=1, max=100,
        help="share of the link's bandwidth, relative to other migrations on it",
    ),
    options.option(
        "policy", MigrationPolicy, default=MigrationPolicy.THROTTLE,
        help="when the guest writes memory too fast: throttle it, keep copying (go-on), or switch to post-copy",
    ),
    options.option(
        "warm", bool, "--warm", default=False, help="pause the VM during the move, and move its snapshots too"
    ),
    options.option(
        "not_before", str, convert=parse_moment, metavar="TIME",
        help="move it later: 22:00, 2h (from now) or 2026-12-01T22:00",
    ),
    options.option(
        "deadline", str, convert=parse_moment, metavar="TIME",
        help="finish by then: the move starts when the VM is usually least busy",
    ),
)  # fmt: skip


def schedule(client: Client, vm: str, fields: Object) -> None:
    """Have a VM moved later, and say when."""
    move = client.act("vms", vm, "schedule-migration", fields)["scheduled_move"]
    say(f"{vm}: moves at {output.when(move['begins_at'])}: {output.text(move['why'])}")


def unschedule(client: Client, vm: str) -> None:
    """Have a VM not moved at the time that was set."""
    client.act("vms", vm, "unschedule-migration")
    say(f"{vm}: stays where it is")


def scheduled(vm: Object) -> str | None:
    """Return when a VM moves, and where, in words."""
    move = vm.get("scheduled_move")
    if move is None:
        return None
    refusal = f"; not yet: {move['refusal']}" if move["refusal"] else ""
    return f"at {output.when(move['begins_at'])} to {move['target'] or 'the best node'}{refusal}"
