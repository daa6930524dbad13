"""``novacron vm clone``, ``export`` and ``import``: VMs like others, and VMs as files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from novacron.cli import output, progress
from novacron.cli.output import Columns, Format, Output
from novacron.cli.vms import Timeout, Vm, Wait, finish
from novacron.client import Client

EXPORTS: Columns = {
    "EXPORT": lambda e: e["id"],
    "VM": lambda e: e["vm_name"],
    "PHASE": lambda e: e["phase"],
    "SIZE": lambda e: output.size(e["size_bytes"]) if e["size_bytes"] else None,
    "NODE": lambda e: e["node"],
    "AGE": lambda e: output.age(e["created_at"]),
    "ERROR": lambda e: e["error"],
}


def clone(
    vm: Vm,
    name: Annotated[str, typer.Argument(help="of the new VM", show_default=False)],
    linked: Annotated[
        bool, typer.Option("--linked", help="share what the VM has written so far, rather than copy it: at once")
    ] = False,
    address: Annotated[str | None, typer.Option(help="the new guest's IPv4 address; the VM's own is not taken")] = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="start it at once")] = True,
    wait: Wait = True,
    timeout: Timeout = 3600,
    output_: Output = Format.TABLE,
) -> None:
    """Create a VM like another, on its node, with what that has on its disk now. The other goes on running."""
    with output.errors():
        client = Client()
        made = client.clone_vm(vm, name, linked=linked, address=address, power="running" if start else "stopped")
        finish(client, made, ("running",) if start else ("stopped",), wait, timeout, output_)


def export(
    vm: Vm,
    file: Annotated[Path, typer.Argument(help="archive to write", show_default=False)],
    timeout: Timeout = 7200,
) -> None:
    """Write a VM as it is now, running or not, into one file. What broke off goes on when it is called again."""
    from novacron.client import archive

    with output.errors():
        done = progress.carrying(
            f"exporting {vm}", lambda told: archive.export(Client(), vm, file, timeout, told)
        )  # fmt: skip
        print(f"{file}: {done['vm_name']}, a disk of {output.size(done['disk_bytes'])}")
        if done["spec"]["tpm"]:
            print("it holds what the VM's TPM remembers: keep it as secret as the VM", file=sys.stderr)


def import_(
    file: Annotated[Path, typer.Argument(help="archive of novacron vm export, or an OVA", show_default=False)],
    name: Annotated[str | None, typer.Argument(help="of the new VM; the archive's if not given")] = None,
    node: Annotated[str | None, typer.Option(help="where; chosen if not given")] = None,
    pool: Annotated[str | None, typer.Option(help="for further disks of an OVA")] = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="start it at once")] = True,
    wait: Wait = True,
    timeout: Timeout = 7200,
    output_: Output = Format.TABLE,
) -> None:
    """Create a VM from an archive or an OVA. Its disk becomes the image NAME-disk, further ones the volumes
    NAME-disk-2 and so on."""
    from novacron.client import archive

    with output.errors():
        client = Client()
        made = progress.carrying(
            f"importing {file}", lambda told: archive.import_(client, file, name, node, timeout, start, told, pool)
        )  # fmt: skip
        finish(client, made, ("running",) if start else ("stopped", "pending"), wait, timeout, output_)


def exports(output_: Output = Format.TABLE) -> None:
    """List exports that nodes keep, newest first; novacron vm export fetches one and removes it."""
    with output.errors():
        output.rows(Client().list("exports"), EXPORTS, output_)


def delete_export(id: Annotated[str, typer.Argument(help="export", show_default=False)]) -> None:
    """Remove an export from its node."""
    with output.errors():
        Client().delete("exports", id)
        print(f"{id}: deleted")
