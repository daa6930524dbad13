"""``novacron image``: what VMs boot from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from novacron.cli import metadata, options, output, progress
from novacron.cli.lists import Listing
from novacron.cli.names import names_of
from novacron.cli.output import Columns, Object
from novacron.client import Client
from novacron.client.choices import ImageFormat
from novacron.terminal import say

app = typer.Typer(no_args_is_help=True, help="Manage the images that VMs are made from.")

COLUMNS: Columns = {
    "NAME": lambda i: i["name"],
    "KIND": lambda i: i["kind"],
    "SIZE": lambda i: output.size(i["size_bytes"]),
    "DIGEST": lambda i: i["digest"][:12],
    "NODES": lambda i: i["nodes"],
    "ENCRYPTION": lambda i: i["encryption_key"] or "off",
    "DESCRIPTION": lambda i: i["description"],
    "TAGS": lambda i: i["tags"],
}


REMOTE: Columns = {
    "NAME": lambda i: i["name"],
    "SIZE": lambda i: output.size(i["size_bytes"]),
    "SIGNED": lambda i: "yes" if i["signed"] else "no",
    "CATALOGUE": lambda i: i["catalogue"],
    "DESCRIPTION": lambda i: i["description"],
}
CATALOGUED = "catalogue:"


@app.command("list")
@options.expand
def list_(
    tag: metadata.TagFilter = None,
    remote: Annotated[bool, typer.Option("--remote", help="list what the server's catalogues offer instead")] = False,
    listing: Listing = Listing(),
) -> None:
    """List images and the nodes that have them, or images in catalogues."""
    if remote:
        with output.errors():
            listing.show_read(lambda limit: _remote()[:limit], REMOTE)
    else:
        listing.show("images", COLUMNS, tag=tag)


def _remote() -> list[Object]:
    """Return what catalogues have, and say which can't be read."""
    listed = Client().catalogue_images()
    for problem in listed["problems"]:
        say(f"warning: catalogue {problem['catalogue']}: {problem['error']}", err=True)
    items: list[Object] = listed["items"]
    return items


@app.command("set")
@options.expand
def set_(
    name: Annotated[str, typer.Argument(help="name of the image", show_default=False)], changes: metadata.Changes
) -> None:
    """Change an image's display name, description and tags."""
    metadata.check_given(changes)
    with output.errors():
        say(f"{Client().configure_image(name, **changes)['name']}: changed")


IMPORTS: Columns = {
    "ID": lambda i: i["id"],
    "IMAGE": lambda i: i["spec"]["name"],
    "PHASE": lambda i: i["phase"],
    "HELD": lambda i: output.size(i["held_bytes"]),
    "NODE": lambda i: i["node"],
    "SOURCE": lambda i: i["spec"]["location"] or "upload",
    "ERROR": lambda i: i["error"],
}


IMPORT_OPTIONS = (
    options.option("sha256", str, help="SHA-256 digest that the file must have"),
    options.option("format", ImageFormat, help="format of the file; detected if not given"),
    options.option("description", str, help="description of the image"),
    options.option("node", str, help="node that receives the image; others fetch it from there"),
)  # fmt: skip


@app.command("import")
@options.expand
def import_(
    name: Annotated[str, typer.Argument(help="name of the new image", show_default=False)],
    fields: Annotated[Object, IMPORT_OPTIONS],
    source: Annotated[
        str | None,
        typer.Argument(
            help="file, HTTP URL, or catalogue:NAME; default: the image of this name in a catalogue",
            show_default=False,
        ),
    ] = None,
    on_node: Annotated[
        bool, typer.Option("--on-node", help="the file is on the node, in its import directory")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="wait until the import is complete")] = True,
    timeout: Annotated[
        float, typer.Option(min=1, help="longest wait, in seconds; the import continues after it")
    ] = 7200,
) -> None:
    """Import an image from a disk (raw, qcow2, VMDK, VDI, VHD or VHDX, also compressed), or one of a catalogue; or, by
    --format, an ISO for CD-ROM drives, or a boot file, which is a kernel or initial RAM disk.

    Run it again to resume an interrupted upload.
    """
    with output.errors():
        client = Client()
        if source is None or source.startswith(CATALOGUED):
            catalogued = name if source is None else source.removeprefix(CATALOGUED)
            image_import = client.import_image(name, catalogue_image=catalogued, **fields)
        elif on_node:
            image_import = client.import_image(name, path=source, **fields)
        elif source.startswith(("http://", "https://")):
            image_import = client.import_image(name, url=source, **fields)
        else:
            image_import = _upload(client, name, Path(source), fields)
        if not wait:
            say(f"importing image {name}; see: novacron image imports")
            return
        say(f"image {name} is on {finish_import(client, image_import, timeout)['node']}")


def finish_import(client: Client, image_import: Object, timeout_s: float) -> Object:
    """Wait for the end of an import, and return it."""
    name = image_import["spec"]["name"]
    done = progress.waiting(
        client, "imports", image_import["id"], f"importing image {name}",
        lambda now: now is None or now["finished_at"] is not None, timeout_s,
    )  # fmt: skip
    if done is None or done["phase"] != "done":
        reason = done["error"] if done else "it is gone"
        raise output.fail(f"image {name} was not imported: {reason}", output.EXIT_FAILED)
    return done


def _upload(client: Client, name: str, file: Path, fields: Object) -> Object:
    """Upload a file, or resume an interrupted upload of this name."""
    if not file.is_file():
        raise output.fail(f"there is no file {file}", output.EXIT_USAGE)
    unfinished = next(
        (
            entry for entry in client.list("imports", phase="receiving")
            if entry["spec"]["name"] == name and entry["spec"]["size_bytes"] == file.stat().st_size
        ),
        None,
    )  # fmt: skip
    if unfinished is not None:
        say(f"resuming {unfinished['id']}", err=True)
        return client.upload(unfinished, file)
    return client.import_image(name, file, **fields)


@app.command()
@options.expand
def imports(listing: Listing = Listing()) -> None:
    """List imports, newest first."""
    listing.show("imports", IMPORTS)


@app.command()
def abort(id: Annotated[str, typer.Argument(help="id of the import", show_default=False)]) -> None:
    """Abort an import and remove its partial data."""
    with output.errors():
        Client().delete("imports", id)
        say(f"{id}: aborted")


@app.command()
def delete(
    name: Annotated[
        str, typer.Argument(help="name of the image", autocompletion=names_of("images"), show_default=False)
    ],
    node: Annotated[str | None, typer.Option(help="remove it from this node only")] = None,
) -> None:
    """Delete an image that no VM uses."""
    with output.errors():
        Client().delete_image(name, node)
        say(f"{name}: deleted")


@app.command("copy")
def copy_(
    name: Annotated[
        str, typer.Argument(help="name of the image", autocompletion=names_of("images"), show_default=False)
    ],
    target: Annotated[
        str, typer.Argument(help="node to copy it to", autocompletion=names_of("nodes"), show_default=False)
    ],
    source: Annotated[
        str | None, typer.Option("--from", help="node to copy it from; by default the nearest one that has it")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="wait until the copy is complete")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="longest wait, in seconds; the copy continues after it")] = 3600,
) -> None:
    """Copy an image from one node to another."""
    with output.errors():
        client = Client()
        copy = client.copy_image(name, target, source)
        say(f"copying image {name} ({output.size(copy['size_bytes'])}) from {copy['source']} to {target}")
        if wait:
            event = client.wait_for_copy(copy, timeout)
            say(event["message"])
            if event["reason"] != "ImageCopied":
                raise typer.Exit(1)
