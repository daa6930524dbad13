"""``novacron image``: what VMs boot from."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from novacron.cli import output, progress
from novacron.cli.output import Columns, Object, Output
from novacron.client import Client

app = typer.Typer(no_args_is_help=True, help="What VMs boot from: import, copy, look at and delete it.")

COLUMNS: Columns = {
    "NAME": lambda i: i["name"],
    "KIND": lambda i: i["kind"],
    "SIZE": lambda i: output.size(i["size_bytes"]),
    "DIGEST": lambda i: i["digest"][:12],
    "NODES": lambda i: i["nodes"],
    "DESCRIPTION": lambda i: i["description"],
}


@app.command("list")
def list_(
    output_: Output = output.Format.TABLE,
) -> None:
    """List images and the nodes that hold them."""
    with output.errors():
        output.rows(Client().list("images"), COLUMNS, output_)


IMPORTS: Columns = {
    "ID": lambda i: i["id"],
    "IMAGE": lambda i: i["spec"]["name"],
    "PHASE": lambda i: i["phase"],
    "HELD": lambda i: output.size(i["held_bytes"]),
    "NODE": lambda i: i["node"],
    "SOURCE": lambda i: i["spec"]["location"] or "upload",
    "ERROR": lambda i: i["error"],
}


class Format(StrEnum):
    """How a disk is written down in a file."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VDI = "vdi"
    VHD = "vhd"
    VHDX = "vhdx"


@app.command("import")
def import_(
    name: Annotated[str, typer.Argument(help="of the new image", show_default=False)],
    source: Annotated[str, typer.Argument(help="file, or URL of HTTP", show_default=False)],
    on_node: Annotated[
        bool, typer.Option("--on-node", help="the file is on the node, below its directory for imports")
    ] = False,
    sha256: Annotated[str | None, typer.Option(help="that the file must have")] = None,
    format_: Annotated[
        Format | None, typer.Option("--format", help="of the file; told by how it begins if not given")
    ] = None,
    description: Annotated[str, typer.Option(help="shown with the image")] = "",
    node: Annotated[str | None, typer.Option(help="which node takes it; others fetch it from there")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="until the image is there")] = True,
    timeout: Annotated[
        float, typer.Option(min=1, help="seconds to wait at most; the import goes on after them")
    ] = 7200,
) -> None:
    """Make an image of a disk: raw, qcow2, VMDK, VDI or VHDX.

    An upload that broke off goes on where it was when the same command is given again.
    """
    with output.errors():
        client = Client()
        fields: Object = {
            "sha256": sha256, "format": None if format_ is None else format_.value,
            "description": description or None, "node": node,
        }  # fmt: skip
        if on_node:
            begun = client.import_image(name, path=source, **fields)
        elif source.startswith(("http://", "https://")):
            begun = client.import_image(name, url=source, **fields)
        else:
            begun = _upload(client, name, Path(source), fields)
        if not wait:
            print(f"importing image {name}; see: novacron image imports")
            return
        done = progress.waiting(
            client, "imports", begun["id"], f"importing image {name}",
            lambda now: now is None or now["finished_at"] is not None, timeout,
        )  # fmt: skip
        if done is None or done["phase"] != "done":
            raise output.fail(
                f"image {name} was not imported: {done['error'] if done else 'it is gone'}", output.EXIT_FAILED
            )
        print(f"image {name} is on {done['node']}")


def _upload(client: Client, name: str, file: Path, fields: Object) -> Object:
    """Upload a file, or go on with an upload of this name that broke off."""
    if not file.is_file():
        raise output.fail(f"there is no file {file}", output.EXIT_USAGE)
    unfinished = next(
        (
            one for one in client.list("imports", phase="receiving")
            if one["spec"]["name"] == name and one["spec"]["size_bytes"] == file.stat().st_size
        ),
        None,
    )  # fmt: skip
    if unfinished is not None:
        print(f"going on with {unfinished['id']}", file=sys.stderr)
        return client.upload(unfinished, file)
    return client.import_image(name, file, **fields)


@app.command()
def imports(output_: Output = output.Format.TABLE) -> None:
    """List imports, newest first."""
    with output.errors():
        output.rows(Client().list("imports"), IMPORTS, output_)


@app.command()
def abort(id: Annotated[str, typer.Argument(help="import", show_default=False)]) -> None:
    """End an import; nothing of it stays."""
    with output.errors():
        Client().delete("imports", id)
        print(f"{id}: aborted")


@app.command()
def delete(
    name: Annotated[str, typer.Argument(help="image", show_default=False)],
    node: Annotated[str | None, typer.Option(help="only on this node")] = None,
) -> None:
    """Remove an image of which no VM is made."""
    with output.errors():
        Client().delete_image(name, node)
        print(f"{name}: deleted")


@app.command()
def copy(
    name: Annotated[str, typer.Argument(help="image", show_default=False)],
    target: Annotated[str, typer.Argument(help="node that is to have it", show_default=False)],
    source: Annotated[
        str | None, typer.Option("--from", help="node that gives it; the nearest that has it if not said")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="until it has arrived")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="seconds to wait at most; the copy goes on after them")] = 3600,
) -> None:
    """Copy an image to a node, from one that has it."""
    with output.errors():
        client = Client()
        begun = client.copy_image(name, target, source)
        print(f"copying image {name} ({output.size(begun['size_bytes'])}) from {begun['source']} to {target}")
        if wait:
            event = client.wait_for_copy(begun, timeout)
            print(event["message"])
            if event["reason"] != "ImageCopied":
                raise typer.Exit(1)
