"""``novacron volume`` and ``novacron pool``: disks that outlive VMs, and where they are."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import output, progress
from novacron.cli.output import Columns, Format, Object, Output
from novacron.client import Client

app = typer.Typer(no_args_is_help=True, help="Disks that outlive VMs: create, attach, grow, detach.")
pools = typer.Typer(no_args_is_help=True, help="Where volumes are.")

Volume = Annotated[str, typer.Argument(help="name or id of the volume", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="until it is done")]
Timeout = Annotated[float, typer.Option("--timeout", min=1, help="longest wait, in seconds")]
Iops = Annotated[int | None, typer.Option(help="reads and writes a second at most")]
Throughput = Annotated[int | None, typer.Option("--throughput", help="bytes a second at most")]

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
    "ID": lambda v: v["id"],
    "KIND": lambda v: v["kind"],
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


def _finish(client: Client, volume: Object, what: str, wait: bool, timeout_s: float) -> None:
    name = volume["name"]
    if wait:
        done = {
            "creating": lambda now: now is None or now["phase"] != "creating",
            "attaching": lambda now: True,
            "detaching": lambda now: now is None or not now["detaching"],
            "deleting": lambda now: now is None,
        }[what]
        last = progress.waiting(client, "volumes", volume["id"], f"{what} volume {name}", done, timeout_s)
        if last is not None and last["error"]:
            raise output.fail(f"volume {name}: {last['error']}", output.EXIT_FAILED)
        print(f"{name}: {'deleted' if last is None else last['phase']}")
    else:
        print(f"{name}: {what}")


@app.command("list")
def list_(
    vm: Annotated[str | None, typer.Option(help="only those of this VM")] = None, output_: Output = Format.TABLE
) -> None:
    """List volumes."""
    with output.errors():
        filters: Object = {"vm": vm} if vm else {}
        output.rows(Client().list("volumes", **filters), COLUMNS, output_)


@app.command()
def show(volume: Volume, output_: Output = Format.TABLE) -> None:
    """Show a volume."""
    with output.errors():
        output.fields(Client().get("volumes", volume), DETAILS, output_)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="lower-case letters, digits and hyphens", show_default=False)],
    size: Annotated[int, typer.Option(help="in MiB", show_default=False)],
    pool: Annotated[str, typer.Option(help="see: novacron pool list")] = "local",
    node: Annotated[str | None, typer.Option(help="where; the one with most room if not given")] = None,
    image: Annotated[str | None, typer.Option(help="image whose disk it begins as a copy of")] = None,
    iops: Iops = None,
    throughput: Throughput = None,
    wait: Wait = True,
    timeout: Timeout = 600,
) -> None:
    """Create a volume, empty or a copy of an image's disk. It takes only the space of what is written to it."""
    with output.errors():
        client = Client()
        made = client.create_volume(
            name, size_mib=size, pool=pool, node=node, image=image, iops=iops, bytes_per_s=throughput
        )  # fmt: skip
        _finish(client, made, "creating", wait, timeout)


@app.command("set")
def set_(
    volume: Volume,
    name: Annotated[str | None, typer.Option(help="new name")] = None,
    size: Annotated[int | None, typer.Option(help="in MiB; it only grows, also while it is used")] = None,
    iops: Annotated[int | None, typer.Option(help="reads and writes a second at most; 0: no limit")] = None,
    throughput: Annotated[int | None, typer.Option(help="bytes a second at most; 0: no limit")] = None,
) -> None:
    """Rename, grow or limit a volume."""
    with output.errors():
        given = {"name": name, "size_mib": size, "iops": iops, "bytes_per_s": throughput}
        changes = {field: value or None for field, value in given.items() if value is not None}
        print(f"{Client().configure_volume(volume, **changes)['name']}: changed")


@app.command()
def attach(
    volume: Volume,
    vm: Annotated[str, typer.Argument(help="name or id of the VM", show_default=False)],
    read_only: Annotated[bool, typer.Option("--read-only", help="the guest can't write to it")] = False,
    boot_order: Annotated[
        int | None, typer.Option(help="firmware tries the lowest first; the VM's own disk has 1")
    ] = None,
) -> None:
    """Give a volume to a VM, at once if that runs. The guest finds it as a SCSI disk whose serial is its id."""
    with output.errors():
        client = Client()
        given = client.attach_volume(volume, vm, read_only=read_only, boot_order=boot_order)
        print(f"{given['name']}: attached to {given['vm_name']}")


@app.command()
def detach(volume: Volume, wait: Wait = True, timeout: Timeout = 60) -> None:
    """Take a volume from its VM, also while that runs. Let the guest unmount it first."""
    with output.errors():
        client = Client()
        _finish(client, client.act("volumes", volume, "detach"), "detaching", wait, timeout)


@app.command()
def delete(volume: Volume, wait: Wait = True, timeout: Timeout = 60) -> None:
    """Delete a volume and all that is in it."""
    with output.errors():
        client = Client()
        found = client.get("volumes", volume)
        client.delete("volumes", found["id"])
        _finish(client, found, "deleting", wait, timeout)


@pools.command("list")
def list_pools(output_: Output = Format.TABLE) -> None:
    """List pools, once for each node that has them."""
    with output.errors():
        output.rows(Client().list("pools"), POOLS, output_)
