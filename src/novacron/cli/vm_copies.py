"""``novacron vm clone``, ``export`` and ``import``: VMs like others, and VMs as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from novacron.cli import options, output, progress
from novacron.cli.lists import Listing
from novacron.cli.options import Wait
from novacron.cli.output import Columns, Object
from novacron.cli.vm_options import chosen_or_new, interfaces
from novacron.cli.vms import VmRef, finish
from novacron.client import Client
from novacron.client.choices import CpuPolicy, HugePages
from novacron.terminal import say

EXPORTS: Columns = {
    "EXPORT": lambda e: e["id"],
    "VM": lambda e: e["vm_name"],
    "PHASE": lambda e: e["phase"],
    "SIZE": lambda e: output.size(e["size_bytes"]) if e["size_bytes"] else None,
    "NODE": lambda e: e["node"],
    "AGE": lambda e: output.age(e["created_at"]),
    "ERROR": lambda e: e["error"],
}


CLONE_OPTIONS = (
    options.option(
        "linked", bool, "--linked", default=False, help="share the VM's current disk data instead of copying it"
    ),
    options.option("address", str, help="the new guest's IPv4 address; by default none"),
    options.option(
        "macs", list[str], "--mac", convert=chosen_or_new,
        help="MAC address of its interface, or new for a free one; repeat it for each interface; by default free ones",
    ),
    options.option(
        "power", bool, "--start/--no-start", default=True, help="start the new VM at once",
        convert=lambda start: "running" if start else "stopped",
    ),
)  # fmt: skip


IMPORT_OPTIONS = (
    options.option("node", str, help="node to run on; chosen by the platform if not given"),
    options.option("pool", str, help="pool for the additional disks of an OVA"),
    options.option("start", bool, "--start/--no-start", default=True, help="start it at once"),
    options.option(
        "nics", list[str], "--network", convert=interfaces,
        help="network to attach, as NETWORK[=ADDRESS][,mac=MAC][,address6=ADDRESS]; can be repeated; none: no network",
    ),
    options.option("cpu_policy", CpuPolicy, help="share the node's CPUs or dedicate some, whatever the archive says"),
    options.option(
        "hugepages", HugePages, help="size of the huge pages that its memory consists of, whatever the archive says"
    ),
    options.option(
        "keep_macs", bool, "--keep-mac/--new-mac",
        help="keep the archive's MAC addresses, or assign new ones; by default keep those of a NovaCron archive that no"
        " other VM has, and assign new ones for an OVA",
    ),
)  # fmt: skip


@options.expand
def clone(
    vm: VmRef,
    name: Annotated[str, typer.Argument(help="name of the new VM", show_default=False)],
    fields: Annotated[Object, CLONE_OPTIONS],
    wait: Wait = Wait(wait=True, timeout_s=3600),
) -> None:
    """Clone a VM, with its current disk, on its node. The original keeps running."""
    with output.errors():
        client = Client()
        finish(client, client.clone_vm(vm, name, **fields), (fields["power"],), wait)


def export(
    vm: VmRef,
    file: Annotated[Path, typer.Argument(help="archive to write", show_default=False)],
    timeout: Annotated[float, typer.Option(min=1, help="longest wait, in seconds")] = 7200,
) -> None:
    """Export a VM, running or not, as it is now, to one file. Run it again to resume an interrupted export."""
    from novacron.client import archive

    with output.errors():
        done = progress.carrying(
            f"exporting {vm}", lambda on_progress: archive.export(Client(), vm, file, timeout, on_progress)
        )  # fmt: skip
        say(f"{file}: {done['vm_name']}, a disk of {output.size(done['disk_bytes'])}")
        if done["spec"]["tpm"]:
            say("it contains the state of the VM's TPM: keep it as secret as the VM", err=True)


@options.expand
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="archive made by novacron vm export, an OVA, or an OVF file with its disks next to it",
            show_default=False,
        ),
    ],
    fields: Annotated[Object, IMPORT_OPTIONS],
    name: Annotated[str | None, typer.Argument(help="name of the new VM; by default the archive's")] = None,
    wait: Wait = Wait(wait=True, timeout_s=7200),
) -> None:
    """Create a VM from an archive, an OVA or an OVF file. Its disk becomes the image NAME-disk, further disks the
    volumes NAME-disk-2 and so on."""
    from novacron.client import archive, archive_format

    order = archive.ArchiveImport(name, timeout_s=wait.timeout_s, **fields)
    with output.errors():
        client = Client()
        archived = archive_format.read(file)
        for sentence in archived.dropped:
            say(f"not taken: {sentence}", err=True)
        vm = progress.carrying(
            f"importing {file}", lambda on_progress: archive.import_(client, file, order, on_progress)
        )  # fmt: skip
        if order.keep_macs is None and archived.own:
            for address, now in zip(archived.macs, archive.mac_addresses(vm), strict=False):
                if address != now:
                    say(f"its MAC address {address} is not free: it has {now}", err=True)
        finish(client, vm, ("running",) if order.start else ("stopped", "pending"), wait)


@options.expand
def exports(listing: Listing = Listing()) -> None:
    """List the exports stored on nodes, newest first. novacron vm export downloads one and removes it."""
    listing.show("exports", EXPORTS)


def delete_export(id: Annotated[str, typer.Argument(help="id of the export", show_default=False)]) -> None:
    """Remove an export from its node."""
    with output.errors():
        Client().delete("exports", id)
        say(f"{id}: deleted")
