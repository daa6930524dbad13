"""``novacron vm nic``: the network interfaces that a VM has."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import options, output
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.client import Client
from novacron.terminal import say

app = typer.Typer(no_args_is_help=True, help="Add, change and remove network interfaces of VMs.")

VmRef = Annotated[str, typer.Argument(metavar="vm", help="name or id of the VM", show_default=False)]
Mac = Annotated[str, typer.Argument(help="MAC address of the interface, see: novacron vm nic list", show_default=False)]
NICS: Columns = {
    "MAC": lambda nic: nic["mac"],
    "NETWORK": lambda nic: nic["network"],
    "ADDRESS": lambda nic: nic["address"],
    "IPV6 ADDRESS": lambda nic: nic.get("address6"),
    "SECURITY GROUPS": lambda nic: nic["groups"],
}
OPTIONS = (
    options.option("address", str, help="its IPv4 address; by default a free one of the network"),
    options.option("address6", str, help="its IPv6 address; by default the one derived from its MAC address"),
    options.option("groups", list[str], "--security-group", help="security group; can be repeated"),
)


@app.command("list")
def list_(vm: VmRef, output_: Output = OutputFormat.TABLE) -> None:
    """List a VM's interfaces in networks."""
    with output.errors():
        output.rows(Client().get("vms", vm)["spec"]["nics"], NICS, output_)


@app.command()
@options.expand
def add(
    vm: VmRef,
    network: Annotated[str, typer.Argument(help="name of the network", show_default=False)],
    fields: Annotated[Object, OPTIONS],
    mac: Annotated[str | None, typer.Option(help="its MAC address; by default a free one")] = None,
) -> None:
    """Add an interface, also while the VM runs. A VM that is off is then detached from its node's bridge."""
    with output.errors():
        _say(Client().add_nic(vm, network, mac=mac, **fields))


@app.command("set")
@options.expand
def set_(
    vm: VmRef,
    mac: Mac,
    fields: Annotated[Object, OPTIONS],
    network: Annotated[str | None, typer.Option(help="move it to this network")] = None,
) -> None:
    """Move an interface to another network, or change its address or security groups; also while the VM runs."""
    if network is not None:
        fields["network"] = network
    if not fields:
        raise typer.BadParameter("nothing to change: specify an option")
    with output.errors():
        _say(Client().configure_nic(vm, mac, **fields))


@app.command()
def remove(vm: VmRef, mac: Mac) -> None:
    """Remove an interface from a VM, also while it runs."""
    with output.errors():
        _say(Client().remove_nic(vm, mac))


def _say(vm: Object) -> None:
    nics = []
    for nic in vm["spec"]["nics"]:
        addresses = [address for address in (nic["address"], nic.get("address6")) if address]
        nics.append(" ".join((nic["mac"], "in", nic["network"], *addresses)))
    say(f"{vm['name']}: {', '.join(nics) or 'on the bridge of its node'}")
