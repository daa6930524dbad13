"""``novacron node``: the hosts that run VMs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

import typer

from novacron.cli import output
from novacron.cli.output import Columns, Format, Object, Output
from novacron.client import Client

app = typer.Typer(no_args_is_help=True, help="Look at the hosts that run VMs, and empty them.")


class DrainPolicy(StrEnum):
    """What to do with a guest that writes faster than the link takes it."""

    THROTTLE = "throttle"
    POST_COPY = "post-copy"
    LEAVE = "leave"


Policy = Annotated[
    DrainPolicy,
    typer.Option(help="when a guest writes too fast: slow it down, move it before its memory, or leave it and say so"),
]
BringBack = Annotated[bool, typer.Option("--bring-back", help="get back the VMs that its last drain has moved away")]
Node = Annotated[str, typer.Argument(help="name of the node", show_default=False)]


def state(node: Object) -> str:
    word = "ready" if node["status"]["ready"] else "lost"
    if node["spec"]["draining"]:
        return f"{word}, draining"
    return f"{word}, cordoned" if node["spec"]["cordoned"] else word


def has(node: Object, key: str) -> Any:
    return (node["status"]["inventory"] or {}).get(key)


def accelerator(node: Object) -> str | None:
    found = has(node, "accelerator")
    return None if found is None else str(found["kind"])


COLUMNS: Columns = {
    "NAME": lambda n: n["name"],
    "STATE": state,
    "CPUS": lambda n: has(n, "cpus"),
    "MEMORY": lambda n: f"{has(n, 'memory_mib')} MiB",
    "SITE": lambda n: n["spec"]["site"],
    "ACCELERATOR": accelerator,
    "QEMU": lambda n: has(n, "qemu_version"),
    "AGE": lambda n: output.age(n["created_at"]),
}


def _hardware(node: Object, what: str) -> list[Object]:
    return list((has(node, "hardware") or {}).get(what, ()))


def _clock(skew_s: float) -> str:
    return f"{abs(skew_s):.1f} s {'ahead' if skew_s > 0 else 'behind'}" if skew_s else "right"


DETAILS: Columns = {
    **COLUMNS,
    "PROBE": lambda n: (has(n, "accelerator") or {}).get("reason"),
    "REASON": lambda n: n["status"]["reason"],
    "KERNEL": lambda n: has(n, "kernel"),
    "IMAGES": lambda n: [image["name"] for image in has(n, "images") or ()],
    "ZONE": lambda n: n["spec"]["zone"],
    "LABELS": lambda n: [f"{key}={value}" for key, value in n["spec"]["labels"].items()],
    "TAINTS": lambda n: [f"{one['key']}={one['effect']}" for one in n["spec"]["taints"]],
    "OVERCOMMIT": lambda n: f"vCPUs {n['spec']['vcpu_overcommit']:g}, memory {n['spec']['memory_overcommit']:g}",
    "CLOCK": lambda n: _clock(n["status"]["clock_skew_s"]),
    "NUMA": lambda n: [f"{one['cpus']} CPUs, {one['memory_mib']} MiB" for one in _hardware(n, "numa")],
    "DISKS": lambda n: [f"{one['name']} {output.size(one['size_bytes'])}" for one in _hardware(n, "disks")],
    "INTERFACES": lambda n: [
        f"{i['name']} {i['mtu']}{'' if i['up'] else ' (down)'}" for i in _hardware(n, "interfaces")
    ],
    "FOR VMS": lambda n: n["spec"]["passthrough"],
    "DEVICES": lambda n: [f"{d['address']} {d['id']} {d['driver']}".strip() for d in _hardware(n, "devices")],
    "CPU": lambda n: (has(n, "cpu") or {}).get("vendor"),
    "CPU FLAGS": lambda n: " ".join((has(n, "cpu") or {}).get("flags", ())),
    "BRIDGE": lambda n: has(n, "bridge"),
    "BRIDGES": lambda n: has(n, "bridges"),
    "NETWORKS": lambda n: "yes" if has(n, "networks") else "no",
    "FOR MIGRATIONS": lambda n: output.rate(n["spec"]["migration_rate_bytes_per_s"]),
    "MIGRATIONS AT ONCE": lambda n: n["spec"]["migrations_at_once"] or "as its CPUs allow",
    "DWCP": lambda n: has(n, "dwcp_endpoint"),
    "AGENT": lambda n: has(n, "agent_version"),
    "MISSING": lambda n: has(n, "missing"),
    "REVISION": lambda n: n["revision"],
}


DRAINS: Columns = {
    "NODE": lambda d: d["node"],
    "PHASE": lambda d: d["phase"],
    "POLICY": lambda d: d["policy"],
    "MOVED": lambda d: f"{len(d['moved'])} of {d['total']}",
    "MOVING": lambda d: len(d["moving"]),
    "LEFT": lambda d: None if d["estimate_s"] is None or d["finished_at"] else f"about {d['estimate_s']:.0f} s",
    "STAYS": lambda d: [f"{one['vm_name']}: {one['why']}" for one in d["stays"]],
    "AGE": lambda d: output.age(d["created_at"]),
}


@app.command("list")
def list_(output_: Output = Format.TABLE) -> None:
    """List nodes."""
    with output.errors():
        output.rows(Client().list("nodes"), COLUMNS, output_)


@app.command()
def show(node: Node, output_: Output = Format.TABLE) -> None:
    """Show all about a node: what it has, which accelerator its probe chose and why, which VMs are there."""
    with output.errors():
        client = Client()
        output.fields(client.get("nodes", node), DETAILS, output_)
        if output_ is Format.TABLE:
            from novacron.cli.vms import COLUMNS as VM_COLUMNS

            print()
            output.table(client.list("vms", node=node), VM_COLUMNS)


def _set(node: str, action: str, out: Format) -> None:
    with output.errors():
        found = Client().act("nodes", node, action)
        if out is Format.JSON:
            output.show_json(found)
        else:
            print(f"{node}: {state(found)}")


@app.command("set")
def set_(
    node: Node,
    site: Annotated[str | None, typer.Option(help="where it stands")] = None,
    zone: Annotated[str | None, typer.Option(help="what of its site fails with it, such as a rack")] = None,
    label: Annotated[list[str] | None, typer.Option(help="KEY=VALUE; KEY- takes it away; can be repeated")] = None,
    taint: Annotated[
        list[str] | None,
        typer.Option(help="KEY keeps VMs away that do not tolerate it, KEY=avoid if others have room; KEY- removes it"),
    ] = None,
    vcpu_overcommit: Annotated[float | None, typer.Option(help="vCPUs for each of its CPUs")] = None,
    memory_overcommit: Annotated[float | None, typer.Option(help="memory for VMs, against what it has")] = None,
    passthrough: Annotated[
        list[str] | None,
        typer.Option(help="address of a PCI device that VMs may have; ADDRESS- takes it back; can be repeated"),
    ] = None,
    migration_rate: Annotated[
        str | None, typer.Option(help="what migrations from and to it may use together, like 500Mbit; none: no limit")
    ] = None,
    migrations: Annotated[
        str | None, typer.Option(help="how many may touch it at once; default: as its CPUs allow, 2 at most")
    ] = None,
    output_: Output = Format.TABLE,
) -> None:
    """Say where a node stands, what it is for, and what migrations may use of its network."""
    given = {
        "site": site, "zone": zone, "vcpu_overcommit": vcpu_overcommit, "memory_overcommit": memory_overcommit,
    }  # fmt: skip
    changes: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
    with output.errors():
        if passthrough is not None:
            now = set(Client().get("nodes", node)["spec"]["passthrough"])
            gone = {one[:-1] for one in passthrough if one.endswith("-")}
            changes["passthrough"] = sorted((now | {one for one in passthrough if not one.endswith("-")}) - gone)
    if migration_rate is not None:
        changes["migration_rate_bytes_per_s"] = None if migration_rate == "none" else output.parse_rate(migration_rate)
    if migrations is not None:
        if not migrations.isdecimal() and migrations != "default":
            raise typer.BadParameter("give a number, or default", param_hint="--migrations")
        changes["migrations_at_once"] = None if migrations == "default" else int(migrations)
    if not changes and not label and not taint:
        raise typer.BadParameter("nothing to change: give an option")
    with output.errors():
        client = Client()
        if label or taint:
            spec = client.get("nodes", node)["spec"]
            changes["labels"] = _changed(spec["labels"], label or (), "")
            taints = _changed({one["key"]: one["effect"] for one in spec["taints"]}, taint or (), "no-schedule")
            changes["taints"] = [{"key": key, "effect": effect} for key, effect in taints.items()]
        output.fields(client.configure_node(node, **changes), DETAILS, output_)


@app.command()
def rename(node: Node, new: Annotated[str, typer.Argument(help="its new name", show_default=False)]) -> None:
    """Give a node another name; its agent takes it over by itself, and its VMs go on."""
    with output.errors():
        print(f"{node}: is called {Client().rename_node(node, new)['name']}")


def _changed(has: dict[str, str], changes: Iterable[str], default: str) -> dict[str, str]:
    found = dict(has)
    for change in changes:
        if change.endswith("-") and "=" not in change:
            found.pop(change[:-1], None)
        else:
            key, _, value = change.partition("=")
            found[key] = value or default
    return found


@app.command()
def cordon(node: Node, output_: Output = Format.TABLE) -> None:
    """Place nothing new on a node."""
    _set(node, "cordon", output_)


@app.command()
def uncordon(
    node: Node,
    bring_back: BringBack = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="wait until they are back")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="longest wait, in seconds")] = 3600,
    output_: Output = Format.TABLE,
) -> None:
    """Place VMs on a node again, and end its draining."""
    with output.errors():
        client = Client()
        found = client.act("nodes", node, "uncordon", {"bring_back": bring_back})
        if bring_back and wait:
            follow_back(client, [node], timeout)
        if output_ is Format.JSON:
            output.show_json(found)
        else:
            print(f"{node}: {state(found)}")


@app.command()
def drain(
    node: Node,
    policy: Policy = DrainPolicy.THROTTLE,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="wait until it is empty")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="longest wait, in seconds")] = 3600,
    output_: Output = Format.TABLE,
) -> None:
    """Move every VM away from a node and place nothing new there. No VM is stopped for it."""
    with output.errors():
        client = Client()
        found = client.act("nodes", node, "drain", {"policy": policy.value})
        if wait:
            follow(client, [node], timeout)
        if output_ is Format.JSON:
            output.show_json(found)
        else:
            print(f"{node}: {'empty and cordoned' if wait else state(found)}")


@app.command()
def drains(
    node: Annotated[str | None, typer.Option(help="only of this node")] = None, output_: Output = Format.TABLE
) -> None:
    """List drains, newest first: how far each is, and which VMs stay."""
    with output.errors():
        filters = {"node": node} if node else {}
        output.rows(Client().list("drains", limit=50, **filters), DRAINS, output_)


def follow(client: Client, names: list[str], timeout_s: float) -> None:
    """Say how far drains of nodes are until these are empty, or all that is left has been given up.

    Raises TimeoutError.
    """
    deadline, last = time.monotonic() + timeout_s, ""
    while True:
        found = [one for name in names if (one := _latest(client, name)) is not None]
        going = [one for one in found if one["phase"] == "draining"]
        text = "; ".join(_told(one) for one in going)
        if text != last and text:
            typer.echo(text, err=True)
            last = text
        if not going:
            return
        stuck = [one for one in going if not one["moving"] and len(one["stays"]) == one["total"] - len(one["moved"])]
        if stuck == going and all(set(one["given_up"]) >= {vm["vm"] for vm in one["stays"]} for one in going):
            raise output.fail("VMs were left where they are: " + text, output.EXIT_FAILED)
        if time.monotonic() > deadline:
            left = sum(one["total"] - len(one["moved"]) for one in going)
            raise TimeoutError(f"{left} VMs are still on {', '.join(one['node'] for one in going)}; draining goes on")
        time.sleep(0.5)


def follow_back(client: Client, names: list[str], timeout_s: float) -> None:
    """Wait until VMs are back on their nodes. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while any(one is not None and one["phase"] == "returning" for one in (_latest(client, name) for name in names)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"VMs are on their way back to {', '.join(names)} yet\nsee: novacron node drains")
        time.sleep(0.5)


def _latest(client: Client, node: str) -> Object | None:
    return next(iter(client.list("drains", limit=1, node=node)), None)


def _told(drain: Object) -> str:
    left, estimate = drain["total"] - len(drain["moved"]), drain["estimate_s"]
    text = f"{drain['node']}: {left} to go"
    if estimate is not None and left:
        text += f", about {estimate:.0f} s"
    return text + "".join(f"; {one['vm_name']} stays: {one['why']}" for one in drain["stays"][:5])


@app.command("join-token")
def join_token(
    node: Annotated[str | None, typer.Option(help="only this host may use it")] = None,
    ttl: Annotated[int, typer.Option(min=60, help="seconds that it is valid")] = 3600,
) -> None:
    """Print a one-time token with which a host joins: novacron agent --join TOKEN."""
    with output.errors():
        print(Client().join_token(node, ttl))


@app.command()
def remove(node: Node) -> None:
    """Forget an empty node; its certificate is worth nothing from then on."""
    with output.errors():
        Client().delete("nodes", node)
        print(f"{node}: removed")
