"""``novacron volume`` and ``novacron pool``: disks that outlive VMs, and the pools that hold them."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import metadata, options, output, progress
from novacron.cli.lists import Listing
from novacron.cli.names import names_of
from novacron.cli.options import QuietWait
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.client import Client
from novacron.client.choices import DiskBus
from novacron.terminal import say

app = typer.Typer(no_args_is_help=True, help="Manage volumes: disks that outlive VMs.")
pools = typer.Typer(no_args_is_help=True, help="Show the pools that hold volumes.")

VolumeRef = Annotated[
    str,
    typer.Argument(
        metavar="volume", help="name or id of the volume", autocompletion=names_of("volumes"), show_default=False
    ),
]

COLUMNS: Columns = {
    "NAME": lambda v: v["name"],
    "PHASE": lambda v: "detaching" if v["detaching"] else v["phase"],
    "SIZE": lambda v: f"{v['size_mib']} MiB",
    "USED": lambda v: output.size(v["used_bytes"]),
    "POOL": lambda v: v["pool"],
    "NODE": lambda v: v["node"],
    "VM": lambda v: v["vm_name"],
    "ERROR": lambda v: v["error"],
}
DETAILS: Columns = {
    **COLUMNS,
    **metadata.COLUMNS,
    "ID": lambda v: v["id"],
    "KIND": lambda v: v["kind"],
    "ENCRYPTION": lambda v: v["encryption_key"] or "off",
    "READ ONLY": lambda v: "yes" if v["read_only"] else "no",
    "BOOT ORDER": lambda v: v["boot_order"],
    "IOPS": lambda v: v["iops"],
    "BYTES A SECOND": lambda v: v["bytes_per_s"],
    "AGE": lambda v: output.age(v["created_at"]),
}
POOLS: Columns = {
    "POOL": lambda p: p["name"],
    "KIND": lambda p: p["kind"],
    "NODE": lambda p: p["node"],
    "FREE": lambda p: output.size(p["bytes_free"]),
    "SIZE": lambda p: output.size(p["bytes_total"]),
    "VOLUMES": lambda p: p["volumes"],
    "PROMISED": lambda p: output.size(p["promised_bytes"]),
    "USED": lambda p: output.size(p["used_bytes"]),
}


def _finish(client: Client, volume: Object, what: str, wait: QuietWait) -> None:
    name = volume["name"]
    if not wait.wait:
        say(f"{name}: {what}")
        return
    done = {
        "creating": lambda now: now is None or now["phase"] != "creating",
        "detaching": lambda now: now is None or not now["detaching"],
        "deleting": lambda now: now is None,
    }[what]
    last = progress.waiting(client, "volumes", volume["id"], f"{what} volume {name}", done, wait.timeout_s)
    if last is not None and last["error"]:
        raise output.fail(f"volume {name}: {last['error']}", output.EXIT_FAILED)
    say(f"{name}: {'deleted' if last is None else last['phase']}")


@app.command("list")
@options.expand
def list_(
    vm: Annotated[str | None, typer.Option(help="only volumes of this VM")] = None,
    tag: metadata.TagFilter = None,
    listing: Listing = Listing(),
) -> None:
    """List volumes."""
    listing.show("volumes", COLUMNS, tag=tag, vm=vm)


@app.command()
def show(volume: VolumeRef, output_: Output = OutputFormat.TABLE) -> None:
    """Show a volume."""
    with output.errors():
        output.fields(Client().get("volumes", volume), DETAILS, output_)


CREATE_OPTIONS = (
    options.option("size_mib", str, "--size", default=..., convert=output.parse_mib, metavar="SIZE",
                   help="size, such as 512M or 20G"),
    options.option("pool", str, default="local", help="see: novacron pool list"),
    options.option("node", str, help="node to create it on; by default the one with the most free space"),
    options.option("image", str, help="image whose disk to copy into the volume"),
    options.option("iops", int, help="limit of reads and writes a second"),
    options.option("bytes_per_s", int, "--throughput", help="limit of bytes a second"),
)  # fmt: skip
CHANGE_OPTIONS = (
    options.option("name", str, help="a new name"),
    options.option("size_mib", str, "--size", convert=output.parse_mib, metavar="SIZE",
        help="size, such as 20G; can only grow, also while in use"),
    options.option("iops", int, help="limit of reads and writes a second; 0 removes it", convert=options.zero_removes),
    options.option(
        "bytes_per_s", int, "--throughput", help="limit of bytes a second; 0 removes it",
        convert=options.zero_removes,
    ),
    *metadata.OPTIONS,
)  # fmt: skip


@app.command()
@options.expand
def create(
    name: Annotated[str, typer.Argument(help="lower-case letters, digits and hyphens", show_default=False)],
    fields: Annotated[Object, CREATE_OPTIONS],
    wait: QuietWait = QuietWait(),
) -> None:
    """Create a volume, empty or as a copy of an image's disk. Volumes are sparse: they use only the space written."""
    with output.errors():
        client = Client()
        _finish(client, client.create_volume(name, **fields), "creating", wait)


@app.command("set")
@options.expand
def set_(volume: VolumeRef, changes: Annotated[Object, CHANGE_OPTIONS]) -> None:
    """Rename, grow, limit or describe a volume."""
    metadata.check_given(changes)
    with output.errors():
        say(f"{Client().configure_volume(volume, **changes)['name']}: changed")


@app.command()
def attach(
    volume: VolumeRef,
    vm: Annotated[str, typer.Argument(help="name or id of the VM", autocompletion=names_of("vms"), show_default=False)],
    read_only: Annotated[bool, typer.Option("--read-only", help="attach it read-only")] = False,
    boot_order: Annotated[
        int | None, typer.Option(help="position in the boot order, lowest first; the VM's own disk has 1")
    ] = None,
    bus: Annotated[
        DiskBus, typer.Option(help="its controller; any other than scsi only while the VM is off")
    ] = DiskBus.SCSI,
) -> None:
    """Attach a volume to a VM, also while it runs. The guest sees a disk with the volume's id as serial."""
    with output.errors():
        client = Client()
        attached = client.attach_volume(volume, vm, read_only=read_only, boot_order=boot_order, bus=bus)
        say(f"{attached['name']}: attached to {attached['vm_name']}")


@app.command()
@options.expand
def detach(volume: VolumeRef, wait: QuietWait = QuietWait(timeout_s=60)) -> None:
    """Detach a volume from its VM, also while it runs. Unmount it in the guest first."""
    with output.errors():
        client = Client()
        _finish(client, client.act("volumes", volume, "detach"), "detaching", wait)


@app.command()
@options.expand
def delete(volume: VolumeRef, yes: options.Yes = False, wait: QuietWait = QuietWait(timeout_s=60)) -> None:
    """Delete a volume with its data."""
    with output.errors():
        client = Client()
        current = client.get("volumes", volume)
        options.ask(yes, True, f"Volume {current['name']} has {current['size_mib']} MiB")
        client.delete("volumes", current["id"])
        _finish(client, current, "deleting", wait)


@pools.command("list")
@options.expand
def list_pools(listing: Listing = Listing()) -> None:
    """List the pools of each node."""
    listing.show("pools", POOLS)
