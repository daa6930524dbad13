"""``novacron audit``: who did what, and whether the log of it is still what was recorded."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from novacron.cli import options, output
from novacron.cli.lists import Listing
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.client import Client
from novacron.client.choices import AuditOutcome
from novacron.terminal import say

if TYPE_CHECKING:  # loaded where they are needed: other commands start faster
    from novacron.audit_chain.verification import VerificationReport

app = typer.Typer(invoke_without_command=True)

RECORDS: Columns = {
    "WHEN": lambda r: output.when(r["at"]),
    "WHO": lambda r: r["actor"],
    "FROM": lambda r: r["address"],
    "WHAT": lambda r: r["action"],
    "OBJECT": lambda r: r["name"] or r["object"],
    "PROJECT": lambda r: r["project"],
    "OUTCOME": lambda r: r["outcome"],
    "DETAIL": lambda r: r["detail"],
}
CHAIN: Columns = {
    "CHAIN": lambda c: c["chain"],
    "BEGINS AFTER ENTRY": lambda c: c["start_seq"],
    "LAST ENTRY": lambda c: c["seq"],
    "ITS HASH": lambda c: c["hash"],
    "NOT CHAINED YET": lambda c: c["unchained"],
    "INSERTED": lambda c: c["strays"],
    "KEYS": lambda c: [f"{key['id']} ({key['server']})" for key in c["keys"]],
}
HEADS: Columns = {
    "ENTRY": lambda h: h["seq"],
    "WHEN": lambda h: output.when(h["at"]),
    "HASH": lambda h: h["hash"],
    "KEY": lambda h: h["key"],
}
FILTERS = (
    options.option("actor", str, help="only entries by this user"),
    options.option("object", str, help="only entries about this object, by id or name"),
    options.option("project", str, help="only entries of this project; required unless you have a role everywhere"),
    options.option("outcome", AuditOutcome, help="only entries with this outcome"),
    options.option("since", str, help="only entries after this time, like 2026-11-27T08:00:00Z"),
)  # fmt: skip
File = Annotated[Path, typer.Argument(help="file to write; - for standard output", show_default=False)]


@app.callback()
@options.expand
def audit(
    context: typer.Context,
    filters: Annotated[Object, FILTERS],
    listing: Listing = Listing(limit=50),
) -> None:
    """Show the audit log, newest first: who did what, from where, and the outcome. Subcommands verify and export it."""
    if context.invoked_subcommand is not None:
        return
    with output.errors():
        client = Client()
        listing.show_log(lambda: client.list("audit", listing.page, **filters), RECORDS)


@app.command()
def chain(output_: Output = OutputFormat.TABLE) -> None:
    """Show the start and end of the hash chain, records that are not chained yet, and the keys that sign its heads."""
    with output.errors():
        output.fields(Client().audit_chain(), CHAIN, output_)


@app.command()
@options.expand
def heads(
    file: Annotated[Path | None, typer.Argument(help="file to write for novacron audit verify --heads")] = None,
    listing: Listing = Listing(),
) -> None:
    """List the signed heads of the chain, or write them to a file. Keep the file where nobody can change it."""
    if file is None:
        listing.show("audit/heads", HEADS)
        return
    from novacron.client import audit as log

    with output.errors(), _new(file) as stream:
        log.export(Client(), stream, heads_only=True)


@app.command()
def export(file: File) -> None:
    """Write the whole log with its chain and heads to a file, one JSON document per line."""
    from novacron.client import audit as log

    with output.errors(), _new(file) as stream:
        done = log.export(Client(), stream)
        say(f"{done.entries} entries", err=True)
        if done.unannounced:
            say("a user was erased during the export, so this file will not verify: export again", err=True)


@contextlib.contextmanager
def _new(file: Path) -> Iterator[IO[str]]:
    """Open a file that only its owner may read, for it holds names and addresses; it goes if it is not finished."""
    if str(file) == "-":
        yield sys.stdout
        return
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            yield stream
    except BaseException:
        file.unlink()
        raise


@app.command()
def verify(
    file: Annotated[Path | None, typer.Argument(help="exported log; default: the server's log")] = None,
    begin: Annotated[
        str | None, typer.Option("--from", help="number of an entry, or a time like 2026-11-27T08:00:00Z")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="number of an entry, or a time")] = None,
    heads: Annotated[Path | None, typer.Option(help="file with exported heads: only their keys are trusted")] = None,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Verify that no audit record was changed, removed, reordered or inserted. Exits with 1 if one was."""
    from novacron.client import audit as log

    range_ = log.Range(_place(begin, "--from"), _place(end, "--to"))
    with output.errors():
        trusted = None if heads is None else log.read(heads)
        if file is None:
            report = log.verify_server(Client(), range_, trusted)
        else:
            report = log.verify_file(file, range_, trusted)
    _show(report, output_)
    if not report.good:
        raise typer.Exit(output.EXIT_FAILED)


def _place(text: str | None, option: str) -> int | datetime | None:
    """Return the number of an entry, or a time. Raises BadParameter."""
    if text is None:
        return None
    if text.isdecimal() and len(text) < 19:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        hint = "write a number, or a time like 2026-11-27T08:00:00Z"
        raise typer.BadParameter(f"{text!r} is neither an entry number nor a time: {hint}", param_hint=option) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _show(report: VerificationReport, output_: OutputFormat) -> None:
    import msgspec

    if not output_.for_people:
        output.show({**msgspec.to_builtins(report), "good": report.good}, output_)
        return
    for fault in report.faults:
        say(f"{fault.kind}: {output.text(fault.message)}")
    if report.more_faults:
        say(f"and {report.more_faults} more")
    vouched = f"up to entry {report.vouched}" if report.vouched else "none"
    say(f"entries {report.first} to {report.last}: {'nothing was changed' if report.good else 'NOT as recorded'};"
        f" good heads: {report.heads}, {vouched}; records of erased people: {report.erased}")  # fmt: skip
