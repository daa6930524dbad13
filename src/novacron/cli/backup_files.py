"""``novacron backup files`` and ``pull``: single files out of backups."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from novacron.cli import output
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.client import ApiError, Client
from novacron.terminal import say

SYSTEMS: Columns = {
    "FILE SYSTEM": lambda s: s["name"],
    "KIND": lambda s: s["kind"],
    "LABEL": lambda s: s["label"] or None,
    "SIZE": lambda s: output.size(s["size_bytes"]),
    "UUID": lambda s: s["uuid"] or None,
}
ENTRIES: Columns = {
    "NAME": lambda e: e["name"] + ("/" if e["is_directory"] else ""),
    "SIZE": lambda e: None if e["is_directory"] else output.size(e["size_bytes"]),
    "MODIFIED": lambda e: output.when(e["modified_at"]),
}

BackupId = Annotated[str, typer.Argument(metavar="backup", help="id of the backup", show_default=False)]
DEPTH_MAX, FILES_MAX = 32, 100_000
PLACE = "path in the backup; with several file systems, after one of them: gpt2:/etc/hostname"


def files(
    backup: BackupId,
    place: Annotated[str | None, typer.Argument(metavar="path", help=PLACE, show_default=False)] = None,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """List the file systems in a backup, or a directory on one of them."""
    with output.errors():
        client = Client()
        if place is None:
            output.rows(client.backup_file_systems(backup), SYSTEMS, output_)
            return
        listing = client.backup_files(backup, *_where(client, backup, place))
        output.rows(listing["entries"], ENTRIES, output_)
        if listing["truncated"]:
            say(f"only the first {len(listing['entries'])} entries are shown", err=True)


def pull(
    backup: BackupId,
    place: Annotated[str, typer.Argument(metavar="path", help=PLACE, show_default=False)],
    file: Annotated[Path, typer.Argument(help="file, or directory, on this machine", show_default=False)],
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="copy a directory, with all that is in it")
    ] = False,
) -> None:
    """Copy a file, or a directory, out of a backup, without restoring it."""
    with output.errors():
        client = Client()
        system, path = _where(client, backup, place)
        if recursive:
            _Copy(client, backup, system).directory(path, file)
        else:
            say(f"{file}: {client.pull_backup_file(backup, system, path, file)} bytes")


class _Copy:
    """Copies directories out of a backup. What can't be read is said, and the rest is copied."""

    def __init__(self, client: Client, backup: str, system: str) -> None:
        self._client, self._backup, self._system = client, backup, system
        self._files = self._bytes = self._failed = 0

    def directory(self, path: str, into: Path) -> None:
        """Copy a directory and say what was copied. Raises typer.Exit if something was not."""
        self._into(path, into, 0)
        say(f"{into}: {self._files} files, {self._bytes} bytes")
        if self._failed:
            raise output.fail(f"{self._failed} files or directories could not be copied", output.EXIT_FAILED)

    def _into(self, path: str, into: Path, depth: int) -> None:
        if depth > DEPTH_MAX:  # links to directories lead back
            self._fail(path, f"it is more than {DEPTH_MAX} directories deep")
            return
        try:
            listing = self._client.backup_files(self._backup, self._system, path)
        except ApiError as error:
            if depth == 0:
                raise
            self._fail(path, str(error))
            return
        into.mkdir(exist_ok=True)
        if listing["truncated"]:
            self._fail(path, f"only its first {len(listing['entries'])} entries can be read")
        for entry in listing["entries"]:
            name = entry["name"]
            if "/" in name or name in ("", ".", ".."):  # nothing that a server says leads out of the directory
                self._fail(path, f"it has an entry {name!r}")
            elif entry["is_directory"]:
                self._into(f"{path.rstrip('/')}/{name}", into / name, depth + 1)
            else:
                self._file(f"{path.rstrip('/')}/{name}", into / name)

    def _file(self, path: str, file: Path) -> None:
        if self._files >= FILES_MAX:
            raise output.fail(f"{FILES_MAX} files were copied, and there are more", output.EXIT_FAILED)
        try:
            self._bytes += self._client.pull_backup_file(self._backup, self._system, path, file)
            self._files += 1
        except (ApiError, OSError) as error:
            self._fail(path, str(error))

    def _fail(self, path: str, why: str) -> None:
        self._failed += 1
        say(f"{path}: {why}", err=True)


def _where(client: Client, backup: str, place: str) -> tuple[str, str]:
    """Return the file system and the path that a user means."""
    system, separator, path = place.partition(":")
    if separator and not place.startswith("/"):
        return system, path or "/"
    systems = client.backup_file_systems(backup)
    if len(systems) == 1:
        return str(systems[0]["name"]), place
    raise output.fail(
        f"backup {backup} has {_names(systems)}", output.EXIT_USAGE,
        f"choose one: {systems[-1]['name']}:{place}" if systems else "restore it as a VM to look into it",
    )  # fmt: skip


def _names(systems: list[Object]) -> str:
    if not systems:
        return "no file system that can be read"
    return "several file systems: " + ", ".join(f"{system['name']} ({system['kind']})" for system in systems)
