"""``novacron snapshot``: take snapshots of VMs, and revert to them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated

import typer

from novacron.cli import metadata, options, output, progress
from novacron.cli.lists import Listing
from novacron.cli.options import QuietWait
from novacron.cli.output import Columns, Object
from novacron.cli.vms import VmRef
from novacron.client import Client
from novacron.terminal import say

app = typer.Typer(no_args_is_help=True, help="Take snapshots of VMs, and revert to them.")

Name = Annotated[str, typer.Argument(help="name of the snapshot", show_default=False)]

COLUMNS: Columns = {
    "SNAPSHOT": lambda s: s.get("label", s["name"]),
    "PHASE": lambda s: s["phase"],
    "MEMORY": lambda s: "yes" if s["memory"] else "no",
    "QUIESCED": lambda s: "yes" if s["quiesce"] else "no",
    "NOT INCLUDED": lambda s: _excluded(s) or None,
    "STOOD STILL": lambda s: None if s["pause_ms"] is None else f"{s['pause_ms']:.0f} ms",
    "AGE": lambda s: output.age(s["created_at"]),
    "ERROR": lambda s: s["error"],
}


def _excluded(snapshot: Object) -> str:
    """Return the names of the volumes that a snapshot does not contain; empty: there were none, or it is not known."""
    return ", ".join(volume["name"] for volume in snapshot.get("excluded_volumes") or ())


def _say_excluded(snapshot: Object, what: str) -> None:
    if excluded := _excluded(snapshot):
        say(f"volumes {what}: {excluded}", err=True)


def tree(snapshots: list[Object], current: str | None) -> Iterator[Object]:
    """Yield snapshots, each after the one that it came from and further in; a star marks where the VM is."""
    children: dict[str | None, list[Object]] = {}
    ids = {snapshot["id"] for snapshot in snapshots}
    for snapshot in snapshots:
        children.setdefault(snapshot["parent"] if snapshot["parent"] in ids else None, []).append(snapshot)
    waiting = [(0, snapshot) for snapshot in reversed(children.get(None, []))]
    while waiting:
        depth, snapshot = waiting.pop()
        star = " *" if snapshot["id"] == current else ""
        yield {**snapshot, "label": "  " * depth + snapshot["name"] + star}
        waiting += [(depth + 1, child) for child in reversed(children.get(snapshot["id"], []))]


def _finish(client: Client, snapshot: Object, what: str, wait: QuietWait) -> None:
    name, vm = snapshot["name"], snapshot["vm_name"]
    if not wait.wait:
        say(f"{name} of {vm}: {snapshot['phase']}")
        return
    last = progress.waiting(
        client, "snapshots", snapshot["id"], f"{what} snapshot {name}",
        lambda now: now is None or now["phase"] in ("ready", "failed"), wait.timeout_s,
    )  # fmt: skip
    if last is not None and last["error"]:
        raise output.fail(f"snapshot {name} of {vm}: {last['error']}", output.EXIT_FAILED)
    say(f"{name} of {vm}: {'deleted' if last is None else last['phase']}")


@app.command("list")
@options.expand
def list_(vm: VmRef, listing: Listing = Listing()) -> None:
    """List a VM's snapshots as a tree; a star marks the one that was last taken or reverted to."""
    with output.errors():
        client = Client()

        def read(limit: int | None) -> Iterator[Object]:
            shown_vm = client.get("vms", vm)
            snapshots = list(client.list(f"vms/{shown_vm['id']}/snapshots"))
            return itertools.islice(tree(snapshots, shown_vm["snapshot"]), limit)

        listing.show_read(read, COLUMNS)


@app.command()
@options.expand
def create(
    vm: VmRef,
    name: Name,
    memory: Annotated[bool, typer.Option("--memory", help="include its memory")] = False,
    quiesce: Annotated[
        bool, typer.Option("--quiesce", help="let the guest agent flush the guest's file systems first")
    ] = False,
    wait: QuietWait = QuietWait(timeout_s=900),
) -> None:
    """Take a snapshot of a VM: of its own disk and optionally its memory, but not of volumes."""
    with output.errors():
        client = Client()
        snapshot = client.create_snapshot(vm, name, memory, quiesce)
        _say_excluded(snapshot, "that the snapshot does not include")
        _finish(client, snapshot, "taking", wait)


@app.command("set")
@options.expand
def set_(vm: VmRef, name: Name, changes: metadata.Changes) -> None:
    """Change a snapshot's display name, description and tags."""
    metadata.check_given(changes)
    with output.errors():
        say(f"{Client().configure_snapshot(vm, name, **changes)['name']}: changed")


@app.command()
@options.expand
def revert(vm: VmRef, name: Name, wait: QuietWait = QuietWait(timeout_s=900)) -> None:
    """Revert a VM to a snapshot. Later writes to its own disk are lost. Volumes stay as they are."""
    with output.errors():
        client = Client()
        snapshot = client.revert_snapshot(vm, name)
        _say_excluded(snapshot, "that the snapshot does not include, and that stay as they are")
        _finish(client, snapshot, "reverting to", wait)


@app.command()
@options.expand
def delete(vm: VmRef, name: Name, wait: QuietWait = QuietWait(timeout_s=900)) -> None:
    """Delete a snapshot; the VM stays as it is, and keeps running."""
    with output.errors():
        client = Client()
        _finish(client, client.delete_snapshot(vm, name), "deleting", wait)
