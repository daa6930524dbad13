"""``novacron vm unreconciled``, ``adopt`` and ``forget``: VMs of which a node knows more than the database."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from novacron.cli import options, output
from novacron.cli.lists import Listing
from novacron.cli.options import Wait
from novacron.cli.output import Columns, Object
from novacron.cli.vms import VmRef, finish
from novacron.client import ApiError, Client
from novacron.client.unreconciled import way_out
from novacron.terminal import say

ADVISED_MAX = 10
COLUMNS: Columns = {
    "NAME": lambda item: item["vm_name"],
    "NODE": lambda item: item["node"],
    "CONTRADICTION": lambda item: item["contradiction"] if item.get("proven", True) else "unproven",
    "EPOCH": lambda item: item["epoch"] if item["contradiction"] != "damaged" else None,
    "PROJECT": lambda item: item["project"],
    "AGE": lambda item: output.age(item["created_at"]),
    "REASON": lambda item: item["reason"],
    "ID": lambda item: item["vm"],
}


@options.expand
def unreconciled(listing: Listing = Listing()) -> None:
    """List VMs for which a node has newer records than the database, because an older one was restored."""
    listing.show("unreconciled-vms", COLUMNS)
    if listing.output.for_people and not listing.watch:
        with output.errors():
            for item in Client().list("unreconciled-vms", ADVISED_MAX):
                say(f"{item['vm_name']}: {way_out(item)}", err=True)


ADOPT_OPTIONS = (
    options.option("node", str, help="node whose record to use; by default the one that has the VM"),
    options.option("name", str, help="new name, if another VM has its name"),
    options.option("project", str, "--into-project", help="project, if the VM's own is not in the database"),
    options.option(
        "confirm", str, metavar="NAME", help="name of the VM, to confirm that no other node runs it"
    ),
)  # fmt: skip


@options.expand
def adopt(
    fields: Annotated[Object, ADOPT_OPTIONS],
    vm: Annotated[str | None, typer.Argument(metavar="vm", help="name or id of the VM", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="all VMs that a node has")] = False,
    wait: Wait = Wait(),
) -> None:
    """Adopt a node's record of a VM into the database: the node is right. The guest keeps running."""
    if (vm is None) != every:
        raise typer.BadParameter("name a VM, or give --all")
    with output.errors():
        client = Client()
        if vm is None:
            _adopt_all(client, fields.get("node"))
            return
        adopted = client.adopt_vm(vm, **fields)
        if adopted["deleting"]:
            say(f"{adopted['name']}: removed from the database")
            return
        finish(client, adopted, (adopted["spec"]["power"],), wait)


def _adopt_all(client: Client, node: str | None) -> None:
    """Adopt each VM that a node has, and say which could not be."""
    had = [
        item for item in client.list("unreconciled-vms")
        if item["claim"] == "owner" and node in (None, item["node"]) and item.get("proven", True)
    ]  # fmt: skip
    refused = 0
    for id in dict.fromkeys(item["vm"] for item in had):
        try:
            adopted = client.adopt_vm(id, node=node)
            say(f"{adopted['name']}: adopted from {adopted['node']}")
        except ApiError as error:
            refused += 1
            say(f"error: {error}", err=True)
    if refused:
        raise typer.Exit(output.EXIT_REFUSED)


def forget(
    vm: VmRef,
    confirm: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="name of the VM, to confirm that the copies on nodes may be deleted"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Delete the copies of a VM on nodes, with their disks: the database is right."""
    with output.errors():
        client = Client()
        records = [item for item in client.list("unreconciled-vms") if vm in (item["vm_name"], item["vm"], item["id"])]
        word = confirm or _word(records, yes)
        client.forget_vm(records[0]["vm"] if records else vm, word or "")
        say(f"{records[0]['vm_name'] if records else vm}: the database is right")


def _word(found: list[Object], yes: bool) -> str | None:
    """Return the VM's name if that is what the person who was shown what will be lost types."""
    if not found or yes or not sys.stdin.isatty():
        return found[0]["vm_name"] if found and yes else None
    for item in found:
        say(item["reason"], err=True)
    say("Nodes will delete their copies of the VM, with its disk.", err=True)
    typed: str = typer.prompt("To confirm, type the VM's name", err=True)
    return typed.strip()
