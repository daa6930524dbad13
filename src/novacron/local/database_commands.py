"""``novacron database``: backups of the platform's database, on the server's machine."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from novacron.cli import output
from novacron.cli.options import expand
from novacron.extras import Extra, require
from novacron.local import database_cluster_commands
from novacron.service_options import StateDir, default_state_dir
from novacron.terminal import say

if TYPE_CHECKING:
    from novacron.local.database_backup import BackupPlace, DatabaseBackup
    from novacron.local.database_recovery import Recovery, Restorable

LATEST = "latest"

app = typer.Typer(no_args_is_help=True)
app.add_typer(
    database_cluster_commands.app, name="cluster", help="Run the database on several machines, with Patroni and etcd"
)

DatabaseUrl = Annotated[
    str | None, typer.Option(envvar="NOVACRON_DATABASE_URL", help="URL of PostgreSQL; default: the embedded one")
]
Repository = Annotated[
    str,
    typer.Option(
        metavar="DIRECTORY|s3://...|rest:https://...",
        help="directory, or URL in object storage or on a REST server, of the backup repository",
    ),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(help="file with the repository's password; default: backup.password in the state directory"),
]
BackupId = Annotated[
    str | None, typer.Argument(help="id of the backup, or its beginning; default: the latest", metavar="[BACKUP]")
]


def _place(repository: str, password_file: Path | None, state_dir: Path | None) -> BackupPlace:
    from novacron.backup.addresses import BadAddress
    from novacron.backup.places import place_of
    from novacron.local import database_backup

    default = (state_dir or default_state_dir()) / database_backup.PASSWORD_FILE
    try:
        return database_backup.BackupPlace(place_of(repository), password_file or default)
    except BadAddress as error:
        raise database_backup.BackupFailed(str(error)) from None


@contextlib.contextmanager
def _backups() -> Iterator[None]:
    """Say in words why there is no backup, and end."""
    require(Extra.SERVER)
    from novacron.backup.locks import survive_hangups
    from novacron.local.database_backup import BackupFailed

    survive_hangups()
    try:
        yield
    except BackupFailed as error:
        say(f"error: {error}", err=True)
        sys.exit(1)


def _when(made: DatabaseBackup) -> str:
    return f"{made.at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _show_backups(every: list[Restorable], output_: output.OutputFormat) -> None:
    rows = [
        {"id": b.id, "at": _when(b), "restorable_until": f"{until.astimezone(UTC):%Y-%m-%d %H:%M:%S}",
         "timeline": timeline, "host": b.host, "files": b.files, "bytes": b.size_bytes}
        for b, until, timeline in ((each.backup, each.until, each.timeline) for each in every)
    ]  # fmt: skip
    columns: output.Columns = {
        "BACKUP": lambda row: row["id"][:8],
        "AT (UTC)": lambda row: row["at"],
        "RESTORABLE UNTIL": lambda row: row["restorable_until"],
        "HOST": lambda row: row["host"],
        "FILES": lambda row: row["files"],
        "SIZE": lambda row: output.size(row["bytes"]),
    }
    output.rows(rows, columns, output_)


@app.command("backup")
def database_backup(
    repository: Repository,
    password_file: PasswordFile = None,
    create: Annotated[
        bool, typer.Option("--create", help="create the repository and its password if they do not exist")
    ] = False,
    state_dir: StateDir = None,
    database: DatabaseUrl = None,
    output_: output.Output = output.OutputFormat.TABLE,
) -> None:
    """Back up the platform's database while it is in use, into a repository in restic's format."""
    with _backups():
        from novacron.local import database_backup as backups
        from novacron.local import database_recovery as recoveries
        from novacron.local.postgres import Postgres

        url = database or Postgres((state_dir or default_state_dir()) / "postgres").url
        place = _place(repository, password_file, state_dir)
        made = backups.backup(place, url, create=create)
        _show_backups([each for each in recoveries.restorable(place) if each.backup.id == made.id], output_)


@app.command("list")
def database_list(
    repository: Repository,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    output_: output.Output = output.OutputFormat.TABLE,
) -> None:
    """List the backups of the platform's database, the latest last."""
    with _backups():
        from novacron.local import database_recovery as recoveries

        _show_backups(recoveries.restorable(_place(repository, password_file, state_dir)), output_)


@app.command("verify")
def database_verify(
    repository: Repository, backup: BackupId = None, password_file: PasswordFile = None, state_dir: StateDir = None
) -> None:
    """Verify a backup of the database: read it and the later WAL back, and let PostgreSQL check the files."""
    with _backups():
        from novacron.local import database_backup as backups
        from novacron.local import database_recovery as recoveries

        place = _place(repository, password_file, state_dir)
        made = backups.verify(place, backup)
        source = next(each for each in recoveries.restorable(place) if each.backup.id == made.id)
        count = recoveries.verify_wal(place, source)
        until = f", and {count} WAL files after it, until {recoveries.shown(source.until)}" if count else ""
        say(f"backup {made.id[:8]} of {_when(made)} is whole: {made.files} files{until}")


@app.command("rehearse")
def database_rehearse(
    repository: Repository,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    scratch: Annotated[
        Path | None,
        typer.Option(help="directory with room for a scratch database; default: the directory for temporary files"),
    ] = None,
    output_: output.Output = output.OutputFormat.TABLE,
) -> None:
    """Recover the newest backup into a scratch database, check it, and delete it. Nothing else changes."""
    with _backups():
        import msgspec

        from novacron.local import database_recovery as recoveries
        from novacron.local import database_rehearsal as rehearsals

        rehearsal = rehearsals.rehearse(_place(repository, password_file, state_dir), scratch)
        if not output_.for_people:
            output.show(msgspec.to_builtins(rehearsal), output_)
            return
        say(
            f"backup {rehearsal.backup[:8]} can be restored until {recoveries.shown(rehearsal.restorable_until)};"
            f" that took {rehearsal.recover_s:.1f} s, and loses what was committed in the last {rehearsal.loss_s:.1f} s"
        )
        say(f"version {rehearsal.schema_version} of the schema, {len(rehearsal.tables)} tables,"
            f" {sum(rehearsal.tables.values())} rows, marks of {rehearsal.marks} servers")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RestoreTarget:
    """What a restore is to put back."""

    backup: Annotated[
        str | None,
        typer.Argument(help="id, or its beginning, of a backup to restore without later changes", metavar="[BACKUP]"),
    ] = None
    to: Annotated[
        str,
        typer.Option(
            help="time to restore to, such as '2026-11-29 03:10:00' (UTC unless it names a zone), or latest:"
            " everything that was archived"
        ),
    ] = LATEST
    timeline: Annotated[
        int | None, typer.Option(min=1, help="timeline of PostgreSQL to restore along; default: the newest")
    ] = None

    def recovery(self, place: BackupPlace) -> Recovery:
        """Return what to restore from a repository. Raises BadParameter, BackupFailed."""
        from novacron.local import database_recovery as recoveries

        if self.backup is None:
            return recoveries.choose(place, _time(self.to), self.timeline)
        if self.to != LATEST or self.timeline is not None:
            raise typer.BadParameter(
                "a BACKUP is restored as it is: leave out either this option or the BACKUP", param_hint="--to"
            )
        return recoveries.choose_backup(place, self.backup)


@app.command("restore")
@expand
def database_restore(
    repository: Repository,
    target: RestoreTarget,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    yes: Annotated[bool, typer.Option("--yes", help="don't ask")] = False,
) -> None:
    """Restore the embedded database to an earlier time, while its server is stopped. The current database is kept.

    Later changes are lost from the database; agents keep the records of their VMs: see how to put back an older
    database.
    """
    with _backups():
        from novacron.local import database_recovery as recoveries

        place = _place(repository, password_file, state_dir)
        recovery = target.recovery(place)
        since = recoveries.shown(recovery.moment)
        if not yes:
            if not sys.stdin.isatty():
                say(f"error: this discards all changes in the database since {since}: confirm with --yes", err=True)
                sys.exit(2)
            lost = f"All changes in the database since {since} will be lost"
            typer.confirm(f"{lost}. Restore?", abort=True)
        done = recoveries.restore(place, state_dir or default_state_dir(), recovery)
        made = recovery.source.backup
        brought = "" if recovery.as_it_is else f", brought to {since},"
        last = done.last_transaction
        say(
            f"backup {made.id[:8]} of {_when(made)}{brought} is in place"
            + (f"; its last transaction is of {recoveries.shown(last)}" if last else "")
            + (f"; the previous database is in {done.kept}" if done.kept else "")
        )
        say("start the server, and see: novacron doctor, novacron vm unreconciled")


def _time(text: str) -> datetime | None:
    """Return a time that was typed; None: the latest. Raises BadParameter."""
    if text == LATEST:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a time: write it like '2026-11-29 03:10:00', 2026-11-29T03:10:00+01:00, or latest",
            param_hint="--to",
        ) from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
