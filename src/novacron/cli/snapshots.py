"""``novacron snapshot``: keep a VM as it is, and go back to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from novacron.cli import output, progress
from novacron.cli.output import Columns, Format, Object, Output
from novacron.client import Client

app = typer.Typer(no_args_is_help=True, help="Keep a VM as it is, and go back to it.")

Vm = Annotated[str, typer.Argument(help="name or id of the VM", show_default=False)]
Name = Annotated[str, typer.Argument(help="of the snapshot", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="until it is done")]
Timeout = Annotated[float, typer.Option("--timeout", min=1, help="longest wait, in seconds")]

COLUMNS: Columns = {
    "SNAPSHOT": lambda s: s.get("label", s["name"]),
    "PHASE": lambda s: s["phase"],
    "MEMORY": lambda s: "yes" if s["memory"] else "no",
    "QUIESCED": lambda s: "yes" if s["quiesce"] else "no",
    "STOOD STILL": lambda s: None if s["pause_ms"] is None else f"{s['pause_ms']:.0f} ms",
    "AGE": lambda s: output.age(s["created_at"]),
    "ERROR": lambda s: s["error"],
}


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


def _finish(client: Client, snapshot: Object, what: str, wait: bool, timeout_s: float) -> None:
    name, vm = snapshot["name"], snapshot["vm_name"]
    if not wait:
        print(f"{name} of {vm}: {snapshot['phase']}")
        return
    last = progress.waiting(
        client, "snapshots", snapshot["id"], f"{what} snapshot {name}",
        lambda now: now is None or now["phase"] in ("ready", "failed"), timeout_s,
    )  # fmt: skip
    if last is not None and last["error"]:
        raise output.fail(f"snapshot {name} of {vm}: {last['error']}", output.EXIT_FAILED)
    print(f"{name} of {vm}: {'deleted' if last is None else last['phase']}")


@app.command("list")
def list_(vm: Vm, output_: Output = Format.TABLE) -> None:
    """List a VM's snapshots as a tree; a star marks the one that the VM made, or went back to, last."""
    with output.errors():
        client = Client()
        found = list(client.list(f"vms/{client.get('vms', vm)['id']}/snapshots"))
        output.rows(tree(found, client.get("vms", vm)["snapshot"]), COLUMNS, output_)


@app.command()
def create(
    vm: Vm,
    name: Name,
    memory: Annotated[bool, typer.Option("--memory", help="keep its memory, too")] = False,
    quiesce: Annotated[bool, typer.Option("--quiesce", help="let its guest agent write out everything first")] = False,
    wait: Wait = True,
    timeout: Timeout = 900,
) -> None:
    """Keep a VM as it is now."""
    with output.errors():
        client = Client()
        _finish(client, client.create_snapshot(vm, name, memory, quiesce), "making", wait, timeout)


@app.command()
def revert(vm: Vm, name: Name, wait: Wait = True, timeout: Timeout = 900) -> None:
    """Let a VM be as it was; what it wrote since is lost."""
    with output.errors():
        client = Client()
        _finish(client, client.revert_snapshot(vm, name), "going back to", wait, timeout)


@app.command()
def delete(vm: Vm, name: Name, wait: Wait = True, timeout: Timeout = 900) -> None:
    """Let go of a snapshot; the VM stays as it is, and goes on running."""
    with output.errors():
        client = Client()
        _finish(client, client.delete_snapshot(vm, name), "deleting", wait, timeout)
