"""``novacron vm``: create, look at and run virtual machines."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from novacron.cli import output, progress
from novacron.cli.output import Columns, Format, Object, Output
from novacron.client import Client

app = typer.Typer(no_args_is_help=True, help="Create, look at and run virtual machines.")

Vm = Annotated[str, typer.Argument(help="name or id of the VM", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="wait until it is done")]
Timeout = Annotated[float, typer.Option("--timeout", min=1, help="longest wait, in seconds")]


class Restart(StrEnum):
    """When a VM that ended without being asked to is started again."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


class WaitFor(StrEnum):
    """What to wait for."""

    RUNNING = "running"
    AGENT = "agent"


SecurityGroup = Annotated[
    list[str] | None, typer.Option(help="of its interfaces in networks; can be repeated", show_default=False)
]
VCPUS_MAX_HELP = "to how many its virtual CPUs may grow while it runs"
MEMORY_MAX_HELP = "to how many MiB its memory may grow while it runs"
HA_PRIORITY_HELP = "of VMs whose node has failed, the highest is started first"
ORDER_HELP = "of VMs that start at once on a node, the lowest goes first"
RESTART_HELP = "start it again when it ended unasked: always, when it crashed, or never"


def state(vm: Object) -> str:
    if vm["deleting"]:
        return "deleting"
    return f"{vm['status']['state']} (migrating)" if vm["migration"] else str(vm["status"]["state"])


VERDICTS: Columns = {
    "NODE": lambda v: v["node"],
    "SCORE": lambda v: None if v["refusal"] else f"{v['score']:.2f}",
    "WHY": lambda v: v["refusal"] or ", ".join(f"{name} {weight:+.2f}" for name, weight in v["weights"].items()),
}


def availability(vm: Object) -> str:
    if not vm["spec"]["ha"]:
        return "no"
    return "yes" if vm["status"]["kept"] or vm["status"]["state"] == "pending" else "from its next start"


def address(vm: Object) -> str | None:
    given = [nic["address"] for nic in vm["spec"]["nics"] if nic["address"]]
    return ", ".join(given) or vm["spec"]["address"]


def interfaces(vm: Object) -> list[str]:
    found = []
    for nic in vm["spec"]["nics"]:
        groups = f" ({', '.join(nic['groups'])})" if nic["groups"] else ""
        found.append(f"{nic['network']} {nic['address'] or ''}".strip() + groups)
    return found


COLUMNS: Columns = {
    "NAME": lambda vm: vm["name"],
    "STATE": state,
    "NODE": lambda vm: vm["node"],
    "CPUS": lambda vm: vm["spec"]["vcpus"],
    "MEMORY": lambda vm: f"{vm['spec']['memory_mib']} MiB",
    "IMAGE": lambda vm: vm["spec"]["image"],
    "ADDRESS": address,
    "AGE": lambda vm: output.age(vm["created_at"]),
}
DETAILS: Columns = {
    **COLUMNS,
    "GUEST": lambda vm: (vm["status"]["guest"] or {}).get("hostname"),
    "ADDRESSES": lambda vm: (vm["status"]["guest"] or {}).get("addresses"),
    "NETWORKS": interfaces,
    "DISK": lambda vm: f"{vm['spec']['disk_mib']} MiB" if vm["spec"]["disk_mib"] else None,
    "FIRMWARE": lambda vm: vm["spec"]["firmware"] + (", TPM" if vm["spec"]["tpm"] else ""),
    "WANTED": lambda vm: vm["spec"]["power"],
    "REASON": lambda vm: vm["status"]["reason"],
    "RESTART": lambda vm: vm["spec"]["restart"],
    "PROTECTED": lambda vm: "yes" if vm["spec"]["protected"] else "no",
    "HA": availability,
    "ID": lambda vm: vm["id"],
    "CPU": lambda vm: vm["spec"]["cpu"] + "".join(f", {flag}" for flag in vm["spec"]["cpu_flags"]),
    "MACHINE": lambda vm: vm["status"]["machine"],
    "ACCELERATOR": lambda vm: vm["status"]["accelerator"],
    "MIGRATION": lambda vm: vm["migration"],
    "EPOCH": lambda vm: vm["epoch"],
    "REVISION": lambda vm: vm["revision"],
}


def finish(
    client: Client, vm: Object, wanted: tuple[str, ...], wait: bool, timeout_s: float, out: Format,
    for_: WaitFor | None = None,
) -> None:  # fmt: skip
    """Wait until the VM is in one of the wanted states, or its guest agent answers, and show it."""
    if wait:

        def until(found: Object | None) -> bool:
            if found is None or found["status"]["state"] == "failed":
                return True
            if for_ is WaitFor.AGENT:
                return found["status"]["guest"] is not None
            return found["status"]["state"] in wanted

        try:
            last = progress.waiting(client, "vms", vm["id"], f"{vm['name']}: until {wanted[0]}", until, timeout_s)
        except TimeoutError:
            found = client.get("vms", vm["id"])
            why = found["status"]["reason"]
            raise TimeoutError(
                f"VM {vm['name']} is {state(found)}{': ' + why if why else ''}\n"
                f"it is still being worked on; see: novacron vm show {vm['name']}"
            ) from None
        if last is None:
            raise output.fail(f"VM {vm['name']} was deleted meanwhile", output.EXIT_FAILED)
        vm = last
        if vm["status"]["state"] == "failed":
            raise output.fail(f"VM {vm['name']} failed: {vm['status']['reason']}", output.EXIT_FAILED)
    if out is Format.JSON:
        output.show_json(vm)
    else:
        print(f"{vm['name']}: {state(vm)}" + (f" on {vm['node']}" if vm["node"] else ""))


@app.command("set")
def set_(
    vm: Vm,
    name: Annotated[str | None, typer.Option(help="a new name")] = None,
    vcpus: Annotated[int | None, typer.Option(help="virtual CPUs; while it runs, only more, up to the most")] = None,
    memory: Annotated[int | None, typer.Option(help="memory in MiB; while it runs, only more, up to the most")] = None,
    vcpus_max: Annotated[int | None, typer.Option(help=f"{VCPUS_MAX_HELP}; 0: they do not")] = None,
    memory_max: Annotated[int | None, typer.Option(help=f"{MEMORY_MAX_HELP}; 0: it does not")] = None,
    restart: Annotated[Restart | None, typer.Option(help=RESTART_HELP)] = None,
    start_order: Annotated[int | None, typer.Option(help=ORDER_HELP)] = None,
    protect: Annotated[bool | None, typer.Option("--protect/--no-protect", help="refuse to delete it")] = None,
    ha: Annotated[bool | None, typer.Option("--ha/--no-ha", help="start it elsewhere when its node fails")] = None,
    ha_priority: Annotated[int | None, typer.Option(help=HA_PRIORITY_HELP)] = None,
    security_group: SecurityGroup = None,
    no_security_group: Annotated[bool, typer.Option("--no-security-group", help="have none any more")] = False,
    disk: Annotated[int | None, typer.Option(help="a larger size of its disk in MiB; also while it runs")] = None,
    disk_iops: Annotated[
        int | None, typer.Option(help="reads and writes a second at most, of its disk; 0: no limit")
    ] = None,
    disk_throughput: Annotated[
        int | None, typer.Option(help="bytes a second at most, of its disk; 0: no limit")
    ] = None,
    output_: Output = Format.TABLE,
) -> None:
    """Rename a VM, resize it, protect it, or say when it is started again."""
    given = {
        "name": name, "vcpus": vcpus, "memory_mib": memory,
        "restart": None if restart is None else restart.value, "start_order": start_order, "protected": protect,
        "ha": ha, "ha_priority": ha_priority, "security_groups": [] if no_security_group else security_group,
        "disk_mib": disk,
    }  # fmt: skip
    changes: Object = {key: value for key, value in given.items() if value is not None}
    limited = {
        "disk_iops": disk_iops, "disk_bytes_per_s": disk_throughput, "vcpus_max": vcpus_max,
        "memory_max_mib": memory_max,
    }  # fmt: skip
    changes |= {key: value or None for key, value in limited.items() if value is not None}
    with output.errors():
        changed = Client().configure_vm(vm, **changes)
        output.fields(changed, DETAILS, output_)


@app.command("list")
def list_(
    node: Annotated[str | None, typer.Option(help="only VMs on this node")] = None,
    state: Annotated[str | None, typer.Option(help="only VMs in this state")] = None,
    output_: Output = Format.TABLE,
) -> None:
    """List VMs."""
    with output.errors():
        filters: Object = {key: value for key, value in (("node", node), ("state", state)) if value}
        output.rows(Client().list("vms", **filters), COLUMNS, output_)


@app.command()
def show(vm: Vm, output_: Output = Format.TABLE) -> None:
    """Show all about a VM, and what happened to it last."""
    with output.errors():
        client = Client()
        found = client.get("vms", vm)
        output.fields(found, DETAILS, output_)
        if output_ is Format.TABLE:
            from novacron.cli.events import COLUMNS as EVENT_COLUMNS

            print()
            output.table(client.list("events", limit=8, object=found["id"]), EVENT_COLUMNS)


@app.command()
def history(vm: Vm, output_: Output = Format.TABLE) -> None:
    """Show what happened to a VM: who did what, and what came of it."""
    from novacron.cli.events import COLUMNS as EVENT_COLUMNS

    with output.errors():
        client = Client()
        output.rows(client.list("events", object=client.get("vms", vm)["id"]), EVENT_COLUMNS, output_)


def _action(
    vm: str, action: str, wanted: str, wait: bool, timeout: float, out: Format, body: Object | None = None
) -> None:
    with output.errors():
        client = Client()
        finish(client, client.act("vms", vm, action, body), (wanted,), wait, timeout, out)


@app.command()
def start(vm: Vm, wait: Wait = False, timeout: Timeout = 120, output_: Output = Format.TABLE) -> None:
    """Start a stopped VM."""
    _action(vm, "start", "running", wait, timeout, output_)


@app.command()
def stop(
    vm: Vm,
    force: Annotated[bool, typer.Option("--force", help="pull the plug")] = False,
    grace: Annotated[int, typer.Option(help="seconds that the guest gets to power off")] = 15,
    wait: Wait = False,
    timeout: Timeout = 120,
    output_: Output = Format.TABLE,
) -> None:
    """Power a VM off: by ACPI, and by force when that takes too long."""
    _action(vm, "stop", "stopped", wait, timeout, output_, {"timeout_s": 0 if force else grace})


@app.command()
def pause(vm: Vm, wait: Wait = False, timeout: Timeout = 120, output_: Output = Format.TABLE) -> None:
    """Stop the guest's processors; its memory stays."""
    _action(vm, "pause", "paused", wait, timeout, output_)


@app.command()
def resume(vm: Vm, wait: Wait = False, timeout: Timeout = 120, output_: Output = Format.TABLE) -> None:
    """Let a paused VM go on."""
    _action(vm, "resume", "running", wait, timeout, output_)


@app.command()
def reboot(vm: Vm, wait: Wait = False, timeout: Timeout = 120, output_: Output = Format.TABLE) -> None:
    """Let the guest boot again: by its agent; without one, or after a minute, by a reset."""
    _again(vm, "reboot", wait, timeout, output_)


@app.command()
def reset(vm: Vm, wait: Wait = False, timeout: Timeout = 120, output_: Output = Format.TABLE) -> None:
    """Reset the guest, as its reset button would."""
    _again(vm, "reset", wait, timeout, output_)


def _again(vm: str, action: str, wait: bool, timeout: float, out: Format) -> None:
    with output.errors():
        client = Client()
        found = client.act("vms", vm, action)
        if wait:
            count = found["spec"][f"{action}s"]
            progress.waiting(
                client, "vms", found["id"], action,
                lambda now: now is None or now["status"][f"{action}s"] >= count, timeout,
            )  # fmt: skip
        finish(client, found, ("running",), wait, timeout, out)


@app.command()
def kill(vm: Vm, wait: Wait = False, timeout: Timeout = 120, output_: Output = Format.TABLE) -> None:
    """Pull a VM's plug: what its guest has not written is lost."""
    _action(vm, "stop", "stopped", wait, timeout, output_, {"timeout_s": 0})


@app.command()
def delete(vm: Vm, wait: Wait = False, timeout: Timeout = 120) -> None:
    """Delete a VM and all that belongs to it."""
    with output.errors():
        client = Client()
        id = client.get("vms", vm)["id"]
        client.delete("vms", id)
        if wait:
            progress.waiting(client, "vms", id, f"deleting {vm}", lambda found: found is None, timeout)
        print(f"{vm}: {'deleted' if wait else 'deleting'}")


@app.command()
def console(vm: Vm) -> None:
    """Connect this terminal to the VM's serial console; Ctrl-] q leaves it, Ctrl-] ? shows the other keys."""
    from novacron.cli.console import attach

    with output.errors():
        attach(Client(), vm)


@app.command()
def display(
    vm: Vm, port: Annotated[int, typer.Option(min=0, max=65535, help="of this machine; a free one if not given")] = 0
) -> None:
    """Let VNC viewers of this machine see and use the VM's display."""
    from novacron.cli.console import serve_display

    with output.errors():
        serve_display(Client(), vm, port)


@app.command()
def screenshot(vm: Vm, file: Annotated[Path, typer.Argument(help="PNG file to write", show_default=False)]) -> None:
    """Save what the VM's display shows."""
    with output.errors():
        file.write_bytes(Client().screenshot(vm))
        print(f"{vm}: {file}")


@app.command()
def log(vm: Vm, size: Annotated[int, typer.Option(min=1, max=1024, help="KiB from the end, at most")] = 64) -> None:
    """Show the end of what the guest printed on its serial console, also after it has crashed."""
    with output.errors():
        text = Client().console_log(vm, size << 10).decode(errors="replace")
        kept = "".join(c for c in text if c.isprintable() or c in "\n\t")
        print(kept, end="" if kept.endswith("\n") else "\n")


class Policy(StrEnum):
    """What to do with a guest that writes faster than the link takes it."""

    THROTTLE = "throttle"
    GO_ON = "go-on"
    POST_COPY = "post-copy"


@app.command()
def migrate(
    vm: Vm,
    to: Annotated[str | None, typer.Option(help="target node; chosen if not given")] = None,
    max_rate: Annotated[str | None, typer.Option(help="what it may use of the link at most, like 50Mbit")] = None,
    weight: Annotated[int, typer.Option(min=1, max=100, help="its share beside other migrations, against theirs")] = 1,
    policy: Annotated[
        Policy, typer.Option(help="when the guest writes too fast: slow it down, wait, or move it before its memory")
    ] = Policy.THROTTLE,
    warm: Annotated[
        bool, typer.Option("--warm", help="let it stand still meanwhile, and take its snapshots along")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only measure how it would go")] = False,
    wait: Wait = True,
    timeout: Timeout = 3600,
    output_: Output = Format.TABLE,
) -> None:
    """Move a VM to another node: live if it runs."""
    from novacron.cli.migrations import FORESEEN, finish

    with output.errors():
        client = Client()
        if dry_run:
            output.fields(client.act("vms", vm, "foresee-migration", {"target": to}), FORESEEN, output_)
            return
        limit = None if max_rate is None else output.parse_rate(max_rate)
        wanted = {
            "target": to, "weight": weight, "rate_limit_bytes_per_s": limit, "policy": policy.value, "warm": warm
        }  # fmt: skip
        migration = client.act("vms", vm, "migrate", wanted)
        finish(client, migration, wait, timeout, output_)
