"""``novacron vm create`` and ``novacron vm placement``: new VMs, and where they can run."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from novacron.cli import options, output
from novacron.cli.options import Wait
from novacron.cli.output import Columns, Output, OutputFormat
from novacron.cli.vm_options import NewVm, with_disks
from novacron.cli.vms import VmRef, WaitFor, finish
from novacron.client import Client

VERDICTS: Columns = {
    "NODE": lambda v: v["node"],
    "SCORE": lambda v: None if v["refusal"] else f"{v['score']:.2f}",
    "WHY": lambda v: v["refusal"] or ", ".join(f"{name} {weight:+.2f}" for name, weight in v["weights"].items()),
}


class Create(TyperCommand):
    """Takes ``--wait=agent`` too: ``--wait`` alone is a flag, which Typer gives no value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - a private class of Typer's
        return super().parse_args(ctx, [arg.replace("--wait=", "--wait-for=", 1) for arg in args])


@options.expand
def create(
    name: Annotated[str, typer.Argument(help="lower-case letters, digits and hyphens", show_default=False)],
    fields: NewVm,
    wait_for: Annotated[
        WaitFor | None, typer.Option(help="wait until the VM runs, or its guest agent answers; also --wait=agent")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show where the VM would run, and why")] = False,
    wait: Wait = Wait(),
) -> None:
    """Create a VM and start it."""
    fields = with_disks(fields)
    groups = fields.pop("security_groups", [])
    interfaces = fields.get("nics", ())
    if groups and not interfaces:
        raise typer.BadParameter("--security-group needs --network: it is of its interfaces")
    for interface in interfaces:
        interface["groups"] = groups
    if len(interfaces) == 1 and "mac" in fields:
        interfaces[0].setdefault("mac", fields.pop("mac"))
    with output.errors():
        client = Client()
        if dry_run:
            output.rows(client.foresee_placement(name=name, **fields), VERDICTS, wait.output)
            return
        vm = client.create_vm(name=name, **fields)
        finish(client, vm, (fields["power"],), wait, wait_for)


def placement(vm: VmRef, output_: Output = OutputFormat.TABLE) -> None:
    """Show for each node whether a VM could move there now, and how well it suits."""
    with output.errors():
        output.rows(Client().placement(vm), VERDICTS, output_)
