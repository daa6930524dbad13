"""``novacron network``, ``security-group``, ``floating-address`` and ``forward``: how VMs reach others, and are
reached."""

from __future__ import annotations

from typing import Annotated

import typer

from novacron.cli import metadata, options, output
from novacron.cli.lists import Listing
from novacron.cli.names import names_of
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.client import Client
from novacron.client.choices import Encryption, Ipv6Addresses
from novacron.terminal import say

app = typer.Typer(no_args_is_help=True, help="Manage the networks of VMs.")
groups = typer.Typer(no_args_is_help=True, help="Manage security groups: rules for traffic to and from VMs.")
floating = typer.Typer(
    no_args_is_help=True, help="Manage floating addresses: addresses of the hosts' network that point to VMs."
)
forwards = typer.Typer(no_args_is_help=True, help="Manage forwarded ports.")

NetworkName = Annotated[
    str, typer.Argument(help="name of the network", autocompletion=names_of("networks"), show_default=False)
]
GroupName = Annotated[
    str,
    typer.Argument(help="name of the security group", autocompletion=names_of("security-groups"), show_default=False),
]
Address = Annotated[str, typer.Argument(help="IPv4 address", show_default=False)]
RuleTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        help="allowed traffic: in:tcp:443, in:icmp::fd00::/8,"
        " in:tcp:8000-8099:10.0.0.0/8, in:any::@GROUP, out:udp:53; can be repeated",
        show_default=False,
    ),
]

NETWORKS: Columns = {
    "NAME": lambda n: n["name"],
    "KIND": lambda n: n["spec"]["kind"],
    "SUBNET": lambda n: n["spec"]["subnet"],
    "SUBNET6": lambda n: n["spec"].get("subnet6"),
    "BRIDGE": lambda n: n["spec"]["bridge"] and _bridge(n["spec"]),
    "MTU": lambda n: n["mtu"],
    "GATEWAY": lambda n: n["gateway"],
    "REASON": lambda n: n["reason"],
    "AGE": lambda n: output.age(n["created_at"]),
}
DETAILS: Columns = {
    **NETWORKS,
    **metadata.COLUMNS,
    "NAT": lambda n: "yes" if n["spec"]["nat"] else "no",
    "NAMESERVERS": lambda n: n["spec"]["nameservers"],
    "SEARCH DOMAINS": lambda n: n["spec"].get("search_domains"),
    "ENCRYPTION": lambda n: "always (fleet)" if n["encryption_required"] else n["spec"]["encryption"],
    "NUMBER": lambda n: n["number"],
}
GROUPS: Columns = {
    "NAME": lambda g: g["name"],
    "RULES": lambda g: [_rule_text(rule) for rule in g["rules"]],
    "AGE": lambda g: output.age(g["created_at"]),
}
FLOATING: Columns = {
    "ADDRESS": lambda f: f["address"],
    "VM": lambda f: f["vm_name"],
    "NETWORK": lambda f: f["network"],
    "REASON": lambda f: f["reason"],
    "AGE": lambda f: output.age(f["created_at"]),
}
FORWARDS: Columns = {
    "ID": lambda f: f["id"],
    "ADDRESS": lambda f: f["address"] or "of the gateway",
    "PORT": lambda f: f"{f['protocol']} {f['port']}",
    "VM": lambda f: f["vm_name"],
    "VM PORT": lambda f: f["vm_port"],
    "NETWORK": lambda f: f["network"],
    "REASON": lambda f: f["reason"],
}


def _bridge(spec: Object) -> str:
    return f"{spec['bridge']}, VLAN {spec['vlan']}" if spec["vlan"] else str(spec["bridge"])


def _rule_text(rule: Object) -> str:
    where = f"@{rule['group']}" if rule["group"] else rule["cidr"] or ""
    return ":".join((rule["direction"], rule["protocol"], rule["ports"] or "", where)).rstrip(":")


def parse_rule(text: str) -> Object:
    """Return the rule that ``DIRECTION:PROTOCOL[:PORTS[:CIDR or @GROUP]]`` says. Raises typer.BadParameter."""
    parts = text.split(":", 3)
    if not 2 <= len(parts) <= 4:
        raise typer.BadParameter(f"{text!r} is not a rule: write it like DIRECTION:PROTOCOL[:PORTS[:CIDR or @GROUP]]")
    direction, protocol, ports, where = (*parts, "", "")[:4]
    return {
        "direction": direction, "protocol": protocol, "ports": ports or None,
        "cidr": where if where and not where.startswith("@") else None,
        "group": where[1:] if where.startswith("@") else None,
    }  # fmt: skip


@app.command("list")
@options.expand
def list_(tag: metadata.TagFilter = None, listing: Listing = Listing()) -> None:
    """List networks."""
    listing.show("networks", NETWORKS, tag=tag)


@app.command()
def show(network: NetworkName, output_: Output = OutputFormat.TABLE) -> None:
    """Show a network."""
    with output.errors():
        output.fields(Client().get("networks", network), DETAILS, output_)


CREATE_OPTIONS = (
    options.option("subnet", str, help="subnet, such as 10.20.0.0/24; a free one if not given"),
    options.option("subnet6", str, help="IPv6 prefix, such as fd12:3456:789a::/64; auto: a random one"),
    options.option("ipv6_addresses", Ipv6Addresses, help="how guests learn IPv6 addresses"),
    options.option("nat", bool, "--nat/--no-nat", default=True, help="translate guests' addresses at the gateway"),
    options.option("nameservers", list[str], "--nameserver", help="name server to forward to; can be repeated"),
    options.option("search_domains", list[str], "--search-domain", help="domain for short names; can be repeated"),
    options.option("bridge", str, help="use this bridge of the hosts instead of an overlay"),
    options.option("vlan", int, help="VLAN tag on that bridge"),
    options.option(
        "encryption", Encryption, default=Encryption.BETWEEN_SITES, help="when to encrypt the traffic between nodes"
    ),
    options.option("mtu", int, help="MTU in bytes; by default the largest that all nodes can carry"),
    options.option("is_default", bool, "--default", help="VMs that name no network are in this one"),
)  # fmt: skip


@app.command()
@options.expand
def create(
    name: Annotated[str, typer.Argument(help="lower-case letters, digits and hyphens", show_default=False)],
    fields: Annotated[Object, CREATE_OPTIONS],
) -> None:
    """Create a network: an overlay across all nodes, or one on a bridge of the hosts."""
    with output.errors():
        network = Client().create_network(name, kind="bridge" if "bridge" in fields else "overlay", **fields)
        say(f"{network['name']}: {network['spec']['subnet'] or _bridge(network['spec'])}, MTU {network['mtu']}")


CHANGE_OPTIONS = (
    options.option("name", str, help="a new name; only while no VM is in the network"),
    options.option("mtu", int, help="MTU in bytes"),
    options.option("nameservers", list[str], "--nameserver", help="name server to forward to; can be repeated",
                   convert=options.without_empty),
    options.option("search_domains", list[str], "--search-domain", help="domain for short names; can be repeated",
                   convert=options.without_empty),
    options.option("is_default", bool, "--default/--no-default", help="VMs that name no network are in this one"),
    *metadata.OPTIONS,
)  # fmt: skip


@app.command("set")
@options.expand
def set_(network: NetworkName, changes: Annotated[Object, CHANGE_OPTIONS]) -> None:
    """Change a network. An empty --nameserver or --search-domain removes all."""
    metadata.check_given(changes)
    with output.errors():
        say(f"{Client().configure_network(network, **changes)['name']}: changed")


@app.command()
def encryption(
    always: Annotated[
        bool | None,
        typer.Option("--always/--as-created", help="encrypt all traffic between nodes, or as set for each network",
                     show_default=False),
    ] = None,
) -> None:  # fmt: skip
    """Show or set whether all traffic of all networks between nodes is encrypted."""
    with output.errors():
        client = Client()
        now = client.network_encryption() if always is None else client.configure_network_encryption(always=always)
        say(f"traffic between nodes is encrypted {'always' if now['always'] else 'as each network was created'}")


@app.command()
def delete(network: NetworkName) -> None:
    """Delete a network that no VM uses."""
    with output.errors():
        Client().delete("networks", network)
        say(f"{network}: deleted")


@groups.command("list")
@options.expand
def list_groups(tag: metadata.TagFilter = None, listing: Listing = Listing()) -> None:
    """List security groups."""
    listing.show("security-groups", GROUPS, tag=tag)


@groups.command("create")
def create_group(name: GroupName, rule: RuleTexts = None) -> None:
    """Create a security group. Inbound traffic needs a rule; outbound traffic is allowed unless a rule limits it."""
    with output.errors():
        group = Client().create_security_group(name, [parse_rule(text) for text in rule or ()])
        say(f"{group['name']}: {len(group['rules'])} rules")


@groups.command("set")
@options.expand
def set_group(name: GroupName, described: metadata.Changes, rule: RuleTexts = None) -> None:
    """Replace the rules of a security group, effective immediately, or change its description and tags.

    Without an option, all rules are removed: no inbound traffic is allowed.
    """
    with output.errors():
        rules = None if described and rule is None else [parse_rule(text) for text in rule or ()]
        changed = Client().configure_security_group(name, rules, **described)
        say(f"{changed['name']}: {len(changed['rules'])} rules")


@groups.command("delete")
def delete_group(name: GroupName) -> None:
    """Delete a security group that nothing uses."""
    with output.errors():
        Client().delete("security-groups", name)
        say(f"{name}: deleted")


@floating.command("list")
@options.expand
def list_floating(tag: metadata.TagFilter = None, listing: Listing = Listing()) -> None:
    """List floating addresses."""
    listing.show("floating-addresses", FLOATING, tag=tag)


@floating.command("set")
@options.expand
def set_floating(address: Address, changes: metadata.Changes) -> None:
    """Change a floating address's display name, description and tags."""
    metadata.check_given(changes)
    with output.errors():
        Client().configure_floating_address(address, **changes)
        say(f"{address}: changed")


@floating.command("add")
def add(address: Address) -> None:
    """Add an unused address of the hosts' network."""
    with output.errors():
        say(f"{Client().add_floating_address(address)['address']}: free")


@floating.command("remove")
def remove(address: Address) -> None:
    """Remove an address that is not attached."""
    with output.errors():
        Client().delete("floating-addresses", address)
        say(f"{address}: removed")


@floating.command("attach")
def attach(
    address: Address,
    vm: Annotated[str, typer.Argument(help="name or id of the VM", autocompletion=names_of("vms"), show_default=False)],
    network: Annotated[str | None, typer.Option(help="network to use, if the VM is in several")] = None,
) -> None:
    """Attach an address to a VM. It follows the VM to other nodes."""
    with output.errors():
        say(f"{address}: points to {Client().attach_floating_address(address, vm, network)['vm_name']}")


@floating.command("detach")
def detach(address: Address) -> None:
    """Detach an address, and remove all its forwarded ports."""
    with output.errors():
        Client().act("floating-addresses", address, "detach")
        say(f"{address}: free")


@forwards.command("list")
@options.expand
def list_forwards(
    vm: Annotated[str | None, typer.Option(help="only ports of this VM")] = None,
    tag: metadata.TagFilter = None,
    listing: Listing = Listing(),
) -> None:
    """List forwarded ports."""
    listing.show("forwards", FORWARDS, tag=tag, vm=vm)


@forwards.command("create")
def create_forward(
    vm: Annotated[str, typer.Argument(help="name or id of the VM", autocompletion=names_of("vms"), show_default=False)],
    vm_port: Annotated[int, typer.Argument(help="port of the VM", show_default=False)],
    port: Annotated[
        int | None,
        typer.Option(
            help="port to forward; by default the same port of a floating address, or a free port of the gateway"
        ),
    ] = None,
    protocol: Annotated[str, typer.Option(help="tcp or udp")] = "tcp",
    address: Annotated[str | None, typer.Option(help="floating address; by default the gateway host's own")] = None,
    network: Annotated[str | None, typer.Option(help="network to use, if the VM is in several")] = None,
) -> None:
    """Forward a port to a VM."""
    with output.errors():
        forward = Client().create_forward(
            vm, vm_port, port, protocol=protocol, address=address, network=network
        )  # fmt: skip
        via = f"{forward['protocol']} port {forward['port']}"
        say(f"{forward['id']}: {via} leads to {forward['vm_name']}, port {vm_port}")


ForwardId = Annotated[str, typer.Argument(help="see: novacron forward list", show_default=False)]


@forwards.command("set")
@options.expand
def set_forward(id: ForwardId, changes: metadata.Changes) -> None:
    """Change a forwarded port's display name, description and tags."""
    metadata.check_given(changes)
    with output.errors():
        Client().configure_forward(id, **changes)
        say(f"{id}: changed")


@forwards.command("delete")
def delete_forward(id: ForwardId) -> None:
    """Stop forwarding a port."""
    with output.errors():
        Client().delete("forwards", id)
        say(f"{id}: deleted")
