"""``novacron database``: backups of the platform's database, on the server's machine."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from novacron.cli import output
from novacron.extras import Extra, require
from novacron.service_options import StateDir, default_state_dir
from novacron.terminal import say

if TYPE_CHECKING:
    from novacron.local.database_backup import BackupPlace, DatabaseBackup

app = typer.Typer(no_args_is_help=True)

DatabaseUrl = Annotated[
    str | None, typer.Option(envvar="NOVACRON_DATABASE_URL", help="URL of PostgreSQL; default: the embedded one")
]
Repository = Annotated[
    str,
    typer.Option(
        metavar="DIRECTORY|s3://...|rest:https://...",
        help="directory, or address in object storage or on a REST server, of the repository with the backups",
    ),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(help="file with the repository's password; default: backup.password in the state directory"),
]
BackupId = Annotated[str | None, typer.Argument(help="id, or how it begins; default: the latest", metavar="[BACKUP]")]


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
    from novacron.local.database_backup import BackupFailed

    try:
        yield
    except BackupFailed as error:
        say(f"error: {error}", err=True)
        sys.exit(1)


def _when(made: DatabaseBackup) -> str:
    return f"{made.at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _show_backups(every: list[DatabaseBackup], output_: output.OutputFormat) -> None:
    rows = [{"id": b.id, "at": _when(b), "host": b.host, "files": b.files, "bytes": b.size_bytes} for b in every]
    columns: output.Columns = {
        "BACKUP": lambda row: row["id"][:8],
        "AT (UTC)": lambda row: row["at"],
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
        bool, typer.Option("--create", help="begin a repository, and its password, if there is none")
    ] = False,
    state_dir: StateDir = None,
    database: DatabaseUrl = None,
    output_: output.Output = output.OutputFormat.TABLE,
) -> None:
    """Back up the platform's database while it is in use, into a repository that restic reads, too."""
    with _backups():
        from novacron.local import database_backup as backups
        from novacron.local.postgres import Postgres

        url = database or Postgres((state_dir or default_state_dir()) / "postgres").url
        _show_backups([backups.backup(_place(repository, password_file, state_dir), url, create=create)], output_)


@app.command("list")
def database_list(
    repository: Repository,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    output_: output.Output = output.OutputFormat.TABLE,
) -> None:
    """List the backups of the platform's database, the latest last."""
    with _backups():
        from novacron.local import database_backup as backups

        _show_backups(backups.backups(_place(repository, password_file, state_dir)), output_)


@app.command("verify")
def database_verify(
    repository: Repository, backup: BackupId = None, password_file: PasswordFile = None, state_dir: StateDir = None
) -> None:
    """Read a backup of the database back, and let PostgreSQL check each of its files."""
    with _backups():
        from novacron.local import database_backup as backups

        made = backups.verify(_place(repository, password_file, state_dir), backup)
        say(f"backup {made.id[:8]} of {_when(made)} is whole: {made.files} files")


@app.command("restore")
def database_restore(
    repository: Repository,
    backup: BackupId = None,
    password_file: PasswordFile = None,
    state_dir: StateDir = None,
    yes: Annotated[bool, typer.Option("--yes", help="don't ask")] = False,
) -> None:
    """Put a backup in the place of the embedded database, while its server is stopped; the database of before is kept.

    What changed since the backup is lost from the database; agents remember their VMs: see how to put back an older
    database.
    """
    with _backups():
        from novacron.local import database_backup as backups

        state = state_dir or default_state_dir()
        place = _place(repository, password_file, state_dir)
        made = backups.find(place, backup)
        at = _when(made)
        if not yes:
            if not sys.stdin.isatty():
                say(f"error: this loses what changed in the database since {at}: confirm with --yes", err=True)
                sys.exit(2)
            typer.confirm(f"Everything that changed in the database since {at} is lost from it. Restore?", abort=True)
        restored, kept = backups.restore(place, state, made.id)
        say(
            f"backup {restored.id[:8]} of {at} is in place" + (f"; the database of before is in {kept}" if kept else "")
        )
        say("start the server, and see: novacron doctor, novacron vm unreconciled")
