"""``novacron vm create`` and ``novacron vm placement``: new VMs, and where they can run."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from novacron.cli import images, options, output
from novacron.cli.options import Wait
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.cli.vm_options import CREATE_OPTIONS, NewVm, with_disks
from novacron.cli.vms import VmRef, WaitFor, finish
from novacron.client import ApiError, Client

PULL_S = 7200.0
"""How long an image is waited for that is imported first; a longer --timeout counts, too."""

VERDICTS: Columns = {
    "NODE": lambda v: v["node"],
    "SCORE": lambda v: None if v["refusal"] else f"{v['score']:.2f}",
    "WHY": lambda v: v["refusal"] or ", ".join(f"{name} {weight:+.2f}" for name, weight in v["weights"].items()),
}


class Create(TyperCommand):
    """Takes ``--wait=agent`` too: ``--wait`` alone is a flag, which Typer gives no value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - a private class of Typer's
        return super().parse_args(ctx, [arg.replace("--wait=", "--wait-for=", 1) for arg in args])


@dataclasses.dataclass(frozen=True)
class CreationOptions:
    """How a VM is created."""

    pull: Annotated[
        bool, typer.Option("--pull/--no-pull", help="import the image first if only a catalogue has it")
    ] = True
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show where the VM would run, and why")] = False


@options.expand
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="lower-case letters, digits and hyphens", show_default=False)],
    fields: NewVm,
    wait_for: Annotated[
        WaitFor | None, typer.Option(help="wait until the VM runs, or its guest agent answers; also --wait=agent")
    ] = None,
    how: CreationOptions = CreationOptions(),
    wait: Wait = Wait(),
) -> None:
    """Create a VM and start it."""
    if "flavor" in fields or "template" in fields:
        fields = options.typed(context, CREATE_OPTIONS, fields)
    fields = with_disks(fields)
    groups = fields.pop("security_groups", [])
    interfaces = fields.get("nics", ())
    if groups and not interfaces:
        raise typer.BadParameter("--security-group needs --network: security groups apply to network interfaces")
    for interface in interfaces:
        interface["groups"] = groups
    if len(interfaces) == 1 and "mac" in fields:
        interfaces[0].setdefault("mac", fields.pop("mac"))
    with output.errors():
        client = Client()
        if how.dry_run:
            output.rows(client.foresee_placement(name=name, **fields), VERDICTS, wait.output)
            return
        vm = _create(client, {"name": name, **fields}, wait.timeout_s, pull=how.pull)
        finish(client, vm, (fields.get("power") or vm["spec"]["power"],), wait, wait_for)


def _create(client: Client, fields: Object, timeout_s: float, *, pull: bool) -> Object:
    """Create a VM, whose image is imported first if only a catalogue has it. Raises ApiError."""
    try:
        return client.create_vm(**fields)
    except ApiError as error:
        image = fields.get("image")
        if not pull or error.code != "invalid_input" or error.field != "image" or not image:
            raise
        image_import = _pulled(client, str(image))
        if image_import is None:
            raise
    images.finish_import(client, image_import, max(timeout_s, PULL_S))
    return client.create_vm(**fields)


def _pulled(client: Client, image: str) -> Object | None:
    """Return the import of an image that a catalogue has, begun now or before; None if none has it."""
    if not any(image == entry["name"] or image in entry["aliases"] for entry in client.catalogue_images()["items"]):
        return None
    try:
        return client.import_image(image, catalogue_image=image)
    except ApiError as error:
        if error.code != "conflict":
            raise
        imports = client.list("imports", phase="receiving")
        return next((entry for entry in imports if entry["spec"]["name"] == image), None)


def placement(vm: VmRef, output_: Output = OutputFormat.TABLE) -> None:
    """Show for each node whether a VM could move there now, and how suitable it is."""
    with output.errors():
        output.rows(Client().placement(vm), VERDICTS, output_)
