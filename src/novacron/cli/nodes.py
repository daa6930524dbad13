"""``novacron node``: the hosts that run VMs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from novacron import private_file
from novacron.cli import metadata, options, output, updates
from novacron.cli.lists import Listing
from novacron.cli.names import names_of
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.client import Client
from novacron.client.choices import DrainPolicy
from novacron.terminal import say

POLL_S = 0.5
STAYS_SHOWN_MAX = 20
STUCK_S = 60.0
"""A drain of which nothing has moved for so long, and nothing can, is not waited for unless a time is given."""
CERTIFICATE_ENDS_SOON_S = 14 * 86_400.0

app = typer.Typer(no_args_is_help=True, help="Manage nodes: the hosts that run VMs.")


DrainPolicyOption = Annotated[
    DrainPolicy,
    typer.Option(
        "--policy",
        help="when a guest writes memory too fast: throttle it, switch to post-copy, or leave it on the node",
    ),
]
DrainTimeout = Annotated[
    float | None,
    typer.Option(min=1, help="longest wait, in seconds; default: while VMs move, plus a minute", show_default=False),
]
TimeLimit = Annotated[
    int | None,
    typer.Option(
        "--time-limit",
        min=10,
        help="seconds after which the drain fails, with the remaining VMs; default: the server's limit",
    ),
]
UNDER_WAY = ("draining", "blocked")
BringBack = Annotated[bool, typer.Option("--bring-back", help="move back the VMs that the last drain moved away")]
NodeName = Annotated[
    str, typer.Argument(metavar="node", help="name of the node", autocompletion=names_of("nodes"), show_default=False)
]


def state(node: Object) -> str:
    word = "ready" if node["status"]["ready"] else "lost"
    if not node["spec"]["accepted"]:
        return f"{word}, not accepted"
    if node["spec"]["draining"]:
        return f"{word}, draining"
    return f"{word}, cordoned" if node["spec"]["cordoned"] else word


def has(node: Object, key: str) -> Any:  # noqa: ANN401 - JSON
    return (node["status"]["inventory"] or {}).get(key)


def accelerator(node: Object) -> str | None:
    details = has(node, "accelerator")
    return None if details is None else str(details["kind"])


def wrong(node: Object) -> list[str]:
    """Return the reasons of the conditions that are not as they should be."""
    return [condition["reason"] for condition in node["status"].get("conditions", ()) if condition["status"] == "false"]


COLUMNS: Columns = {
    "NAME": lambda n: n["name"],
    "STATE": state,
    "CONDITIONS": wrong,
    "CPUS": lambda n: has(n, "cpus"),
    "MEMORY": lambda n: f"{has(n, 'memory_mib')} MiB",
    "SITE": lambda n: n["spec"]["site"],
    "ACCELERATOR": accelerator,
    "QEMU": lambda n: has(n, "qemu_version"),
    "AGE": lambda n: output.age(n["created_at"]),
}


def _hardware(node: Object, what: str) -> list[Object]:
    return list((has(node, "hardware") or {}).get(what, ()))


def _certificate(node: Object) -> str | None:
    """Return until when the certificate of a node's agent is valid, and what to do if that is near."""
    ends_at_s = node["status"].get("certificate_ends_at_s", 0.0)
    if not ends_at_s:
        return None
    left_s = ends_at_s - time.time()
    date = f"{datetime.fromtimestamp(ends_at_s, UTC):%Y-%m-%d %H:%M} UTC"
    if left_s <= 0:
        join = f"novacron node join-token --node {node['name']}, then there: novacron agent --rejoin @FILE"
        return f"ended on {date}: {join}"
    return f"until {date}" + ("" if left_s > CERTIFICATE_ENDS_SOON_S else ": its agent renews it once it is connected")


def _clock(skew_s: float) -> str:
    return f"{abs(skew_s):.1f} s {'ahead' if skew_s > 0 else 'behind'}" if skew_s else "right"


DETAILS: Columns = {
    **COLUMNS,
    **metadata.COLUMNS,
    "PROBE": lambda n: (has(n, "accelerator") or {}).get("reason"),
    "REASON": lambda n: n["status"]["reason"],
    "UNRECONCILED": lambda n: n["status"].get("unreconciled_vms") or None,
    "REPORTED": lambda n: (
        (more := n["status"].get("reported"))
        and (f"{more['cpus']} CPUs, {more['memory_mib']} MiB: more than was accepted, see novacron node accept --help")
    ),
    "KERNEL": lambda n: has(n, "kernel"),
    "FOREIGN IMAGES": lambda n: n["status"].get("foreign_images"),
    "IMAGES": lambda n: [image["name"] for image in has(n, "images") or ()],
    "ZONE": lambda n: n["spec"]["zone"],
    "LABELS": lambda n: [f"{key}={value}" for key, value in n["spec"]["labels"].items()],
    "TAINTS": lambda n: [f"{taint['key']}={taint['effect']}" for taint in n["spec"]["taints"]],
    "OVERCOMMIT": lambda n: f"vCPUs {n['spec']['vcpu_overcommit']:g}, memory {n['spec']['memory_overcommit']:g}",
    "CLOCK": lambda n: _clock(n["status"]["clock_skew_s"]),
    "CERTIFICATE": _certificate,
    "NUMA": lambda n: [f"{cell['cpus']} CPUs, {cell['memory_mib']} MiB" for cell in _hardware(n, "numa")],
    "DISKS": lambda n: [f"{disk['name']} {output.size(disk['size_bytes'])}" for disk in _hardware(n, "disks")],
    "INTERFACES": lambda n: [
        f"{i['name']} {i['mtu']}{'' if i['up'] else ' (down)'}" for i in _hardware(n, "interfaces")
    ],
    "FOR VMS": lambda n: n["spec"]["passthrough"],
    "DEVICES": lambda n: [f"{d['address']} {d['id']} {d['driver']}".strip() for d in _hardware(n, "devices")],
    "CPU": lambda n: (has(n, "cpu") or {}).get("vendor"),
    "CPU FLAGS": lambda n: " ".join((has(n, "cpu") or {}).get("flags", ())),
    "BRIDGE": lambda n: has(n, "bridge"),
    "BRIDGES": lambda n: has(n, "bridges"),
    "VLAN BRIDGES": lambda n: has(n, "vlan_bridges"),
    "NETWORKS": lambda n: "yes" if has(n, "networks") else "no",
    "FOR MIGRATIONS": lambda n: output.rate(n["spec"]["migration_rate_bytes_per_s"]),
    "MIGRATIONS AT ONCE": lambda n: n["spec"]["migrations_at_once"] or "as its CPUs allow",
    "DWCP": lambda n: has(n, "dwcp_endpoint"),
    "AGENT": lambda n: has(n, "agent_version"),
    "MISSING": lambda n: has(n, "missing"),
    "REVISION": lambda n: n["revision"],
}


CONDITIONS: Columns = {
    "CONDITION": lambda c: c["type"],
    "STATUS": lambda c: c["status"],
    "REASON": lambda c: c["reason"],
    "SINCE": lambda c: output.age(c["since"]),
    "MESSAGE": lambda c: c["message"],
}
DRAINS: Columns = {
    "NODE": lambda d: d["node"],
    "PHASE": lambda d: d["phase"],
    "POLICY": lambda d: d["policy"],
    "MOVED": lambda d: f"{len(d['moved'])} of {d['total']}",
    "MOVING": lambda d: len(d["moving"]),
    "LEFT": lambda d: None if d["estimate_s"] is None or d["finished_at"] else f"about {d['estimate_s']:.0f} s",
    "STAYS": lambda d: [f"{vm['vm_name']}: {vm['why']}" for vm in d["stays"]],
    "REASON": lambda d: d["reason"],
    "AGE": lambda d: output.age(d["created_at"]),
}


@app.command("list")
@options.expand
def list_(tag: metadata.TagFilter = None, listing: Listing = Listing()) -> None:
    """List nodes."""
    listing.show("nodes", COLUMNS, tag=tag)


@app.command()
def show(node: NodeName, output_: Output = OutputFormat.TABLE) -> None:
    """Show a node in detail: its hardware, which accelerator it uses and why, its conditions, and its VMs."""
    with output.errors():
        client = Client()
        details = client.get("nodes", node)
        output.fields(details, DETAILS, output_)
        if output_.for_people:
            from novacron.cli.vms import COLUMNS as VM_COLUMNS

            say()
            output.table(details["status"].get("conditions", ()), CONDITIONS)
            say()
            output.table(client.list("vms", node=node), VM_COLUMNS)


def _set(node: str, action: str, out: OutputFormat) -> None:
    with output.errors():
        updated = Client().act("nodes", node, action)
        if not out.for_people:
            output.show(updated, out)
        else:
            say(f"{node}: {state(updated)}")


def _migrations_at_once(text: str) -> int | None:
    if text == "default":
        return None
    if not text.isdecimal():
        raise typer.BadParameter("give a number, or default", param_hint="--migrations")
    return int(text)


SET_OPTIONS = (
    options.option("site", str, help="site that the node is in"),
    options.option("zone", str, help="failure domain within the site, such as a rack"),
    options.option("vcpu_overcommit", float, help="vCPUs that VMs can have per CPU of the node"),
    options.option("memory_overcommit", float, help="memory that VMs can have, relative to the node's memory"),
    options.option(
        "migration_rate_bytes_per_s", str, "--migration-rate",
        help="combined bandwidth limit of all its migrations, such as 500Mbit; none removes it",
        convert=lambda text: None if text == "none" else output.parse_rate(text),
    ),
    options.option(
        "migrations_at_once", str, "--migrations", convert=_migrations_at_once,
        help="limit of concurrent migrations; default: depends on its CPUs, up to 2",
    ),
    *metadata.OPTIONS,
)  # fmt: skip


@app.command("set")
@options.expand
def set_(
    node: NodeName,
    changes: Annotated[Object, SET_OPTIONS],
    label: Annotated[list[str] | None, typer.Option(help="KEY=VALUE sets it, KEY- removes it; can be repeated")] = None,
    taint: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY keeps away VMs that do not tolerate it; KEY=avoid: only if others have room; KEY- removes it"
        ),
    ] = None,
    passthrough: Annotated[
        list[str] | None,
        typer.Option(help="address of a PCI device that VMs can use; ADDRESS- removes it; can be repeated"),
    ] = None,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Change a node's site, labels and taints, its overcommit, the limits of its migrations, description and tags."""
    if not changes and not label and not taint and passthrough is None:
        raise typer.BadParameter("nothing to change: specify an option")
    with output.errors():
        client = Client()
        of_lists = label or taint or passthrough is not None
        changed = client.configure_node(node, **changes) if not of_lists else updates.update(
            client, "nodes", node,
            lambda now: {**changes, **_list_changes(now["spec"], label or (), taint or (), passthrough)},
        )  # fmt: skip
        output.fields(changed, DETAILS, output_)


def _list_changes(spec: Object, labels: Iterable[str], taints: Iterable[str], devices: list[str] | None) -> Object:
    """Return the new lists of a node, of which the options name only what is added and removed."""
    changes: Object = {}
    if labels or taints:
        changes["labels"] = _merged(spec["labels"], labels, "")
        effects = _merged({taint["key"]: taint["effect"] for taint in spec["taints"]}, taints, "no-schedule")
        changes["taints"] = [{"key": key, "effect": effect} for key, effect in effects.items()]
    if devices is not None:
        removed = {text[:-1] for text in devices if text.endswith("-")}
        added = {text for text in devices if not text.endswith("-")}
        changes["passthrough"] = sorted((set(spec["passthrough"]) | added) - removed)
    return changes


@app.command()
def rename(node: NodeName, new: Annotated[str, typer.Argument(help="its new name", show_default=False)]) -> None:
    """Rename a node. Its agent adopts the new name automatically, and its VMs keep running."""
    with output.errors():
        say(f"{node}: is called {Client().rename_node(node, new)['name']}")


def _merged(current: dict[str, str], changes: Iterable[str], default: str) -> dict[str, str]:
    merged = dict(current)
    for change in changes:
        if change.endswith("-") and "=" not in change:
            merged.pop(change[:-1], None)
        else:
            key, _, value = change.partition("=")
            merged[key] = value or default
    return merged


@app.command()
def accept(node: NodeName, output_: Output = OutputFormat.TABLE) -> None:
    """Accept a host that has joined as a node, or the CPUs and memory that a node now reports."""
    _set(node, "accept", output_)


@app.command()
def cordon(node: NodeName, output_: Output = OutputFormat.TABLE) -> None:
    """Cordon a node: place no new VMs on it."""
    _set(node, "cordon", output_)


@app.command()
def uncordon(
    node: NodeName,
    bring_back: BringBack = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="wait until they are back")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="longest wait, in seconds")] = 3600,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Uncordon a node: place VMs on it again, and end its drain."""
    with output.errors():
        client = Client()
        updated = client.act("nodes", node, "uncordon", {"bring_back": bring_back})
        if bring_back and wait:
            follow_back(client, [node], timeout)
        if not output_.for_people:
            output.show(updated, output_)
        else:
            say(f"{node}: {state(updated)}")


@app.command()
def drain(
    node: NodeName,
    policy: DrainPolicyOption = DrainPolicy.THROTTLE,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="wait until it is empty")] = True,
    timeout: DrainTimeout = None,
    time_limit: TimeLimit = None,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Drain a node: move its VMs to other nodes and place no new ones on it. No VM is stopped."""
    with output.errors():
        client = Client()
        updated = client.act("nodes", node, "drain", drain_order(policy, time_limit))
        if wait:
            follow(client, [node], timeout)
        if not output_.for_people:
            output.show(updated, output_)
        else:
            say(f"{node}: {'empty and cordoned' if wait else state(updated)}")


@app.command()
@options.expand
def drains(
    node: Annotated[str | None, typer.Option(help="only drains of this node")] = None,
    listing: Listing = Listing(limit=50),
) -> None:
    """List drains, newest first: their progress, and the remaining VMs."""
    listing.show("drains", DRAINS, node=node)


def drain_order(policy: DrainPolicy, time_limit_s: int | None) -> Object:
    """Return the body of a request to drain."""
    return {"policy": policy.value, **({} if time_limit_s is None else {"time_limit_s": time_limit_s})}


def follow(client: Client, names: list[str], timeout_s: float | None) -> None:
    """Report the progress of drains until the nodes are empty, or nothing more will move.

    ``timeout_s`` None: wait while VMs move, and then ``STUCK_S``. Raises TimeoutError.
    """
    began, moved_at, last = time.monotonic(), time.monotonic(), ""
    while active := _active(client, names):
        text, now = "; ".join(map(_progress, active)), time.monotonic()
        if text not in ("", last):
            say(text, err=True)
            last = text
        if all(map(_gave_up, active)):
            raise output.fail("VMs were left where they are: " + text, output.EXIT_FAILED)
        if not all(drain["phase"] == "blocked" for drain in active):
            moved_at = now
        _check_patience(active, now - began, now - moved_at, timeout_s)
        time.sleep(POLL_S)
    _check_failed(client, names, "the nodes stay cordoned; see: novacron node drains")


def _check_failed(client: Client, names: list[str], hint: str) -> None:
    """Raise if the time limit of a drain has passed."""
    failed = [drain for name in names if (drain := _latest(client, name)) and drain["phase"] == "failed"]
    if failed:
        said = "; ".join(f"the drain of {drain['node']} failed: {drain['reason']}" for drain in failed)
        raise output.fail(said, output.EXIT_FAILED, hint)


def _check_patience(active: list[Object], waited_s: float, stuck_s: float, timeout_s: float | None) -> None:
    """Raise once drains are not to be waited for any longer: TimeoutError, if a time was given."""
    if timeout_s is not None and waited_s > timeout_s:
        raise TimeoutError(_unfinished(active))
    if timeout_s is None and stuck_s > STUCK_S:
        raise output.fail(_unfinished(active), output.EXIT_FAILED)


def _unfinished(drains: list[Object]) -> str:
    remaining = sum(drain["total"] - len(drain["moved"]) for drain in drains)
    nodes = [drain["node"] for drain in drains]
    whys = [f"{vm['vm_name']} stays: {vm['why']}" for drain in drains for vm in drain["stays"]]
    return "; ".join(
        (
            f"{remaining} VMs are still on {', '.join(nodes)}",
            *whys[:STAYS_SHOWN_MAX],
            f"the drain goes on, and tries again; to end it: novacron node uncordon {nodes[0]}",
        )
    )


def _active(client: Client, names: list[str]) -> list[Object]:
    latest = (_latest(client, name) for name in names)
    return [drain for drain in latest if drain is not None and drain["phase"] in UNDER_WAY]


def _gave_up(drain: Object) -> bool:
    """Say whether nothing moves, and all that is left has been given up."""
    remaining = drain["total"] - len(drain["moved"])
    nothing_moves = remaining > 0 and not drain["moving"] and len(drain["stays"]) == remaining
    return nothing_moves and set(drain["given_up"]) >= {vm["vm"] for vm in drain["stays"]}


def follow_back(client: Client, names: list[str], timeout_s: float) -> None:
    """Wait until VMs are back on their nodes. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while any((drain := _latest(client, name)) is not None and drain["phase"] == "returning" for name in names):
        if time.monotonic() > deadline:
            raise TimeoutError(f"VMs are still on their way back to {', '.join(names)}\nsee: novacron node drains")
        time.sleep(POLL_S)
    _check_failed(client, names, "see: novacron node drains")


def _latest(client: Client, node: str) -> Object | None:
    return next(iter(client.list("drains", limit=1, node=node)), None)


def _progress(drain: Object) -> str:
    remaining, estimate = drain["total"] - len(drain["moved"]), drain["estimate_s"]
    text = f"{drain['node']}: {remaining} to go"
    if estimate is not None and remaining:
        text += f", about {estimate:.0f} s"
    return text + "".join(f"; {vm['vm_name']} stays: {vm['why']}" for vm in drain["stays"][:5])


@app.command("join-token")
def join_token(
    node: Annotated[str, typer.Option(help="name of the host; no other host can use the token", show_default=False)],
    ttl: Annotated[int, typer.Option(min=60, help="seconds until it expires")] = 3600,
    accept: Annotated[
        bool,
        typer.Option("--accept", help="accept the host at once; otherwise it is cordoned until novacron node accept"),
    ] = False,
    file: Annotated[
        Path | None, typer.Option(help="write it to this file, which only you can read, instead of printing it")
    ] = None,
) -> None:
    """Create a one-time token with which a host joins: novacron agent --join @FILE."""
    with output.errors():
        token = Client().join_token(node, ttl, accept)
        if file is None:
            say(token)
        else:
            private_file.write(file, token.encode() + b"\n")


@app.command()
def remove(
    node: NodeName,
    force: Annotated[
        bool, typer.Option("--force", help="the host is gone for good: start its VMs elsewhere, where possible")
    ] = False,
    confirm: options.Confirm = None,
) -> None:
    """Remove an empty node, or with --force one that is gone for good, and revoke its certificate."""
    with output.errors():
        client = Client()
        if not force:
            client.delete("nodes", node)
        else:
            lost = [vm["name"] for vm in client.list("vms", node=node)]
            client.remove_node(node, force=True, confirm=confirm or options.ask_for_word(node))
            names = set(lost) & {vm["name"] for vm in client.list("vms") if vm["lost_on"] == node}
            if names:
                say(f"their disks were on {node} only: {', '.join(sorted(names))}")
                say("see: novacron vm recover --help")
        say(f"{node}: removed")
