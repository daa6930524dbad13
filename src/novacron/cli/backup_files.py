"""``novacron backup files`` and ``pull``: single files out of backups."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from novacron.cli import output
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.client import Client
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
    file: Annotated[Path, typer.Argument(help="file on this machine", dir_okay=False, show_default=False)],
) -> None:
    """Copy a file out of a backup, without restoring it."""
    with output.errors():
        client = Client()
        system, path = _where(client, backup, place)
        say(f"{file}: {client.pull_backup_file(backup, system, path, file)} bytes")


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
        f"say on which one: {systems[-1]['name']}:{place}" if systems else "restore it as a VM to look into it",
    )  # fmt: skip


def _names(systems: list[Object]) -> str:
    if not systems:
        return "no file system that can be read"
    return "several file systems: " + ", ".join(f"{system['name']} ({system['kind']})" for system in systems)
