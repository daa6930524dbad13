"""Progress on anything that takes over a second: bars and spinners on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from novacron.cli.output import Object, size
from novacron.client import Client
from novacron.terminal import safe, say

QUIET_S = 0.7
ENDED = ("completed", "failed", "aborted")


def _plain(text: str) -> str:
    """Return text that is neither markup nor able to control the terminal."""
    from rich.markup import escape

    return escape(safe(text))


def waiting(
    client: Client, kind: str, ref: str, what: str, until: Callable[[Object | None], bool], timeout_s: float
) -> Object | None:
    """Wait for an object, with a spinner once it takes longer than a moment; an interrupt ends only the waiting.

    Raises TimeoutError.
    """
    try:
        return _waited(client, kind, ref, what, until, timeout_s)
    except KeyboardInterrupt:
        _say_going_on(what, kind, ref)
        raise


SEE = {
    "vms": "novacron vm show {}", "migrations": "novacron migration show {}", "imports": "novacron image imports",
    "volumes": "novacron volume show {}", "exports": "novacron vm exports",
    "backups": "novacron backup show {}",
}  # fmt: skip
END = {
    "migrations": "novacron migration abort {}", "imports": "novacron image abort {}",
    "exports": "novacron vm delete-export {}", "volumes": "novacron volume delete {}", "vms": "novacron vm stop {}",
    "backups": "novacron backup delete {}",
}  # fmt: skip
STOPS = "novacron vm kill {}"
"""How to end a guest that does not stop."""


def _say_going_on(what: str, kind: str, ref: str) -> None:
    """Say how to see, and how to end, what a command no longer waits for."""
    say(f"{what}: this continues on the server; only the command has ended", err=True)
    if kind in SEE:
        say("to check it: " + SEE[kind].replace("{}", ref), err=True)
    end = STOPS if kind == "vms" and what.endswith("stopped") else END.get(kind)
    if end is not None and not what.startswith(("deleting", "detaching")):
        say("to end it: " + end.replace("{}", ref), err=True)


def _waited(
    client: Client, kind: str, ref: str, what: str, until: Callable[[Object | None], bool], timeout_s: float
) -> Object | None:
    if not sys.stderr.isatty():
        return client.wait(kind, ref, until, timeout_s)
    try:
        return client.wait(kind, ref, until, QUIET_S)
    except TimeoutError:
        from rich.console import Console

        with Console(stderr=True).status(_plain(what)):
            return client.wait(kind, ref, until, timeout_s - QUIET_S)


def migration(client: Client, id: str, timeout_s: float) -> Object:
    """Follow a migration to its end with a progress bar, or a line every second. Raises TimeoutError."""
    started = time.monotonic()
    show = _bar(started) if sys.stderr.isatty() else _lines()
    last: Object | None = None

    def on_change(current: Object | None) -> bool:
        nonlocal last
        last = current
        if current is not None:
            show(current)
        return current is None or current["phase"] in ENDED

    try:
        client.wait("migrations", id, on_change, timeout_s)
    except KeyboardInterrupt:
        _say_going_on("migration", "migrations", id)
        raise
    assert last is not None
    return last


def share_done(migration: Object) -> float:
    """Return how much of the memory has been sent in the current pass, 0 to 1."""
    if migration["phase"] == "completed":
        return 1.0
    total, remaining = migration["progress"]["total_bytes"], migration["progress"]["remaining_bytes"]
    return 0.0 if total <= 0 else max(0.0, min(1.0, 1 - remaining / total))


def line(migration: Object) -> str:
    progress = migration["progress"]
    rate = progress["rate_bytes_per_s"] * 8 / 1e6
    return f"{migration['phase']:<12} pass {progress['passes']}  sent {size(progress['wire_bytes'])}  {rate:.0f} Mbit/s"


def _lines() -> Callable[[Object], None]:
    shown_at = 0.0
    shown_phase = ""

    def show(migration: Object) -> None:
        nonlocal shown_at, shown_phase
        now = time.monotonic()
        if migration["phase"] != shown_phase or now - shown_at >= 1:
            shown_at, shown_phase = now, migration["phase"]
            done = share_done(migration)
            bar = "#" * round(done * 24)
            say(f"  [{bar:<24}] {done:4.0%}  {line(migration)}", err=True, flush=True)

    return show


def _bar(started: float) -> Callable[[Object], None]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    from rich.console import Console

    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("waiting", total=1.0)
    bar.start()

    def show(migration: Object) -> None:
        bar.update(task, completed=share_done(migration), description=_plain(line(migration)))
        if migration["phase"] in ENDED:
            bar.stop()

    return show


def carrying(what: str, work: Callable[[Callable[[int, int], None]], Object]) -> Object:
    """Do work that tells how many bytes are there and how many there will be, with a bar on a terminal."""
    if not sys.stderr.isatty():
        return work(lambda have, all_: None)
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(_plain(what), total=None)
        return work(lambda have, all_: bar.update(task, completed=have, total=all_))
