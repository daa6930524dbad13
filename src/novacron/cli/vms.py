"""``novacron vm``: create and run virtual machines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from novacron import private_file
from novacron.cli import metadata, move_options, options, output, progress, updates, vm_backup, vm_memory
from novacron.cli.lists import Listing
from novacron.cli.names import names_of
from novacron.cli.options import QuietWait, Wait
from novacron.cli.output import EXIT_INTERRUPTED, Columns, Object, Output, OutputFormat
from novacron.cli.vm_options import NoSecurityGroup, VmChanges
from novacron.client import ApiError, Client
from novacron.terminal import say, say_lines

app = typer.Typer(no_args_is_help=True, help="Create and run virtual machines.")

NAMED_MAX = 5
VmRef = Annotated[
    str, typer.Argument(metavar="vm", help="name or id of the VM", autocompletion=names_of("vms"), show_default=False)
]
VmRefs = Annotated[
    list[str],
    typer.Argument(metavar="vm...", help="names or ids of VMs", autocompletion=names_of("vms"), show_default=False),
]


class WaitFor(StrEnum):
    """What to wait for."""

    RUNNING = "running"
    AGENT = "agent"


def state(vm: Object) -> str:
    if vm.get("unreconciled"):
        return "unreconciled"
    if vm["deleting"]:
        return "deleting"
    return f"{vm['status']['state']} (migrating)" if vm["migration"] else str(vm["status"]["state"])


def availability(vm: Object) -> str:
    if not vm["spec"]["ha"]:
        return "no"
    return "yes" if vm["status"]["kept"] or vm["status"]["state"] == "pending" else "from its next start"


def address(vm: Object) -> str | None:
    addresses = [address for nic in vm["spec"]["nics"] for address in (nic["address"], nic.get("address6")) if address]
    return ", ".join(addresses) or vm["spec"]["address"]


def interfaces(vm: Object) -> list[str]:
    texts = []
    for nic in vm["spec"]["nics"]:
        groups = f" ({', '.join(nic['groups'])})" if nic["groups"] else ""
        addresses = [address for address in (nic["address"], nic.get("address6")) if address]
        texts.append(" ".join((nic["network"], *addresses)) + groups)
    return texts


COLUMNS: Columns = {
    "NAME": lambda vm: vm["name"],
    "STATE": state,
    "NODE": lambda vm: vm["node"],
    "CPUS": lambda vm: vm["spec"]["vcpus"],
    "MEMORY": lambda vm: f"{vm['spec']['memory_mib']} MiB",
    "IMAGE": lambda vm: vm["spec"]["image"],
    "ADDRESS": address,
    "BACKUP": vm_backup.newest,
    "AGE": lambda vm: output.age(vm["created_at"]),
}


def mac_addresses(vm: Object) -> str | None:
    spec = vm["spec"]
    addresses = [nic["mac"] for nic in spec["nics"]] if spec["nics"] else [spec["mac"]]
    return ", ".join(filter(None, addresses)) or None


DETAILS: Columns = {
    **COLUMNS,
    **metadata.COLUMNS,
    "MEMORY NOW": vm_memory.memory_now,
    "CPU POLICY": lambda vm: vm["spec"].get("cpu_policy"),
    "NUMA NODES": lambda vm: vm["spec"].get("numa_nodes"),
    "HUGE PAGES": lambda vm: vm["spec"].get("hugepages"),
    "GUEST": lambda vm: (vm["status"]["guest"] or {}).get("hostname"),
    "ADDRESSES": lambda vm: (vm["status"]["guest"] or {}).get("addresses"),
    "NETWORKS": interfaces,
    "MAC": mac_addresses,
    "BACKUP POLICIES": lambda vm: vm_backup.of(vm)["policies"],
    "BACKUP VERIFIED": lambda vm: output.when(vm_backup.of(vm)["verified_at"]),
    "DISK": lambda vm: f"{vm['spec']['disk_mib']} MiB" if vm["spec"]["disk_mib"] else None,
    "ENCRYPTION": lambda vm: vm["spec"]["encryption_key"] or "off",
    "FIRMWARE": lambda vm: vm["spec"]["firmware"] + (", TPM" if vm["spec"]["tpm"] else ""),
    "WANTED": lambda vm: vm["spec"]["power"],
    "RESTORED": vm_backup.restored,
    "REASON": lambda vm: vm["status"]["reason"],
    "RESTART": lambda vm: vm["spec"]["restart"],
    "PROTECTED": lambda vm: "yes" if vm["spec"]["protected"] else "no",
    "HA": availability,
    "ID": lambda vm: vm["id"],
    "CPU": lambda vm: vm["spec"]["cpu"] + "".join(f", {flag}" for flag in vm["spec"]["cpu_flags"]),
    "MACHINE": lambda vm: vm["status"]["machine"],
    "ACCELERATOR": lambda vm: vm["status"]["accelerator"],
    "MIGRATION": lambda vm: vm["migration"],
    "MOVES": move_options.scheduled,
    "EPOCH": lambda vm: vm["epoch"],
    "REVISION": lambda vm: vm["revision"],
}


def finish(client: Client, vm: Object, states: tuple[str, ...], wait: Wait, wait_for: WaitFor | None = None) -> None:
    """Wait, if asked to, until the VM is in one of the states, or its guest agent answers, and show it."""
    if wait.wait or wait_for is not None:
        vm = _waited(client, vm, states, wait.timeout_s, wait_for)
    if not wait.output.for_people:
        output.show(vm, wait.output)
    else:
        say(_as_it_is(vm, states))


def _as_it_is(vm: Object, states: tuple[str, ...], intended: str | None = None) -> str:
    """Say how a VM is, and how it is going to be if it is not yet so."""
    now = f"{vm['name']}: {state(vm)}" + (f" on {vm['node']}" if vm["node"] else "")
    if intended is None and vm["status"]["state"] not in states:
        intended = f"will be {states[0]}"
    return f"{now}, {intended}" if intended else now


def _waited(client: Client, vm: Object, states: tuple[str, ...], timeout_s: float, wait_for: WaitFor | None) -> Object:
    def until(current: Object | None) -> bool:
        if current is None or current["status"]["state"] == "failed":
            return True
        if wait_for is WaitFor.AGENT:
            return current["status"]["guest"] is not None
        return current["status"]["state"] in states

    try:
        last = progress.waiting(client, "vms", vm["id"], f"{vm['name']}: until {states[0]}", until, timeout_s)
    except TimeoutError:
        current = client.get("vms", vm["id"])
        reason = current["status"]["reason"]
        raise TimeoutError(
            f"VM {vm['name']} is {state(current)}{': ' + reason if reason else ''}\n"
            f"it is still in progress; see: novacron vm show {vm['name']}"
        ) from None
    if last is None:
        raise output.fail(f"VM {vm['name']} was deleted meanwhile", output.EXIT_FAILED)
    if last["status"]["state"] == "failed":
        raise output.fail(f"VM {vm['name']} failed: {last['status']['reason']}", output.EXIT_FAILED)
    return last


@app.command("set")
@options.expand
def set_(
    vm: VmRef, changes: VmChanges, no_security_group: NoSecurityGroup = False, output_: Output = OutputFormat.TABLE
) -> None:
    """Change a VM: its name, size, hardware, placement, availability, protection, description or tags.

    An empty text ("") removes a group, all labels, or all tolerations. Placement takes effect when the VM
    is next placed or moved.
    """
    if no_security_group:
        changes["security_groups"] = []
    with output.errors():
        client = Client()
        placed = changes.get("placement")  # the API replaces it as a whole
        changed = client.configure_vm(vm, **changes) if placed is None else updates.update(
            client, "vms", vm, lambda now: {**changes, "placement": {**now["spec"]["placement"], **placed}}
        )  # fmt: skip
        output.fields(changed, DETAILS, output_)


FILTERS = (
    options.option("node", str, help="only VMs on this node"),
    options.option("state", str, help="only VMs in this state"),
    options.option("image", str, help="only VMs of this image"),
    options.option("name", str, help="only the VM with this name; web* matches all names that begin with web"),
)


WIDE: Columns = {
    "GUEST ADDRESSES": lambda vm: (vm["status"].get("guest") or {}).get("addresses"),
    "HA": availability,
    "REASON": lambda vm: vm["status"]["reason"],
}


@app.command("list")
@options.expand
def list_(filters: Annotated[Object, FILTERS], tag: metadata.TagFilter = None, listing: Listing = Listing()) -> None:
    """List VMs."""
    if listing.output.for_people:
        with output.errors():
            _warn_of_unreconciled(Client())
    listing.show("vms", COLUMNS, WIDE, tag=tag, **filters)


def _warn_of_unreconciled(client: Client) -> None:
    """Say on stderr that there are VMs that no list shows as they are."""
    names = sorted({item["vm_name"] for item in client.list("unreconciled-vms")})
    if names:
        shown = ", ".join(names[:NAMED_MAX]) + ("..." if len(names) > NAMED_MAX else "")
        say(f"warning: nodes have newer records than the database: {shown}; see: novacron vm unreconciled", err=True)


@app.command()
def show(vm: VmRef, output_: Output = OutputFormat.TABLE) -> None:
    """Show a VM in detail, with its latest events."""
    with output.errors():
        client = Client()
        try:
            details = client.get("vms", vm)
        except ApiError as error:
            if error.status == 404 and vm in {item["vm_name"] for item in client.list("unreconciled-vms")}:
                _warn_of_unreconciled(client)
            raise
        output.fields(details, DETAILS, output_)
        if output_.for_people:
            from novacron.cli.events import COLUMNS as EVENT_COLUMNS

            say()
            output.table(client.list("events", limit=8, object=details["id"]), EVENT_COLUMNS)


@app.command()
@options.expand
def history(vm: VmRef, listing: Listing = Listing()) -> None:
    """Show the events of a VM, newest first; with --watch, new ones as they happen."""
    from novacron.cli import events

    with output.errors():
        client = Client()
        events.show(client, client.get("vms", vm)["id"], listing)


def _act(refs: list[str], action: str, state_after: str, wait: Wait, body: Object | None = None) -> None:
    client = _connect()

    def end(vm: Object) -> Object:
        return _waited(client, vm, (state_after,), wait.timeout_s, None) if wait.wait else vm

    vms = _in_turn(_in_turn(refs, lambda ref: client.act("vms", ref, action, body)), end)
    _show_all(vms, wait, lambda vm: _as_it_is(vm, (state_after,)))


def _connect() -> Client:
    with output.errors():
        return Client()


class _Done(list[Object]):
    """What came of each VM that was named, and the exit code of the last one that failed."""

    code = 0


def _in_turn(items: Iterable[Any], do: Callable[[Any], Object]) -> _Done:
    """Do something with each; what fails says so, and does not keep the others from it."""
    done = _Done()
    done.code = getattr(items, "code", 0)
    for item in items:
        try:
            with output.errors():
                done.append(do(item))
        except typer.Exit as ended:
            done.code = ended.exit_code
            if ended.exit_code == EXIT_INTERRUPTED:
                raise
    return done


def _show_all(vms: _Done, wait: Wait, line: Callable[[Object], str]) -> None:
    """Show VMs, one as an object and several as a list. Raises typer.Exit if something failed."""
    if not wait.output.for_people:
        if vms:
            output.show(vms[0] if len(vms) == 1 else vms, wait.output)
    else:
        for vm in vms:
            say(line(vm))
    if vms.code:
        raise typer.Exit(vms.code)


@app.command()
@options.expand
def start(vm: VmRefs, wait: Wait = Wait()) -> None:
    """Start stopped VMs."""
    _act(vm, "start", "running", wait)


@app.command()
@options.expand
def stop(
    vm: VmRefs,
    force: Annotated[bool, typer.Option("--force", help="power off at once, without asking the guest")] = False,
    grace: Annotated[int, typer.Option(help="seconds that the guest has to shut down")] = 15,
    wait: Wait = Wait(),
) -> None:
    """Shut down VMs with ACPI, and power them off if that takes too long."""
    _act(vm, "stop", "stopped", wait, {"timeout_s": 0 if force else grace})


@app.command()
@options.expand
def pause(vm: VmRefs, wait: Wait = Wait()) -> None:
    """Pause VMs; they keep their memory."""
    _act(vm, "pause", "paused", wait)


@app.command()
@options.expand
def resume(vm: VmRefs, wait: Wait = Wait()) -> None:
    """Resume paused VMs."""
    _act(vm, "resume", "running", wait)


@app.command()
@options.expand
def reboot(vm: VmRefs, wait: Wait = Wait()) -> None:
    """Reboot VMs with their guest agents; without one, or after a minute, reset them."""
    _restart(vm, "reboot", wait)


@app.command()
@options.expand
def reset(vm: VmRefs, wait: Wait = Wait()) -> None:
    """Reset VMs, as with their reset buttons."""
    _restart(vm, "reset", wait)


def _restart(refs: list[str], action: str, wait: Wait) -> None:
    client = _connect()

    def end(vm: Object) -> Object:
        if not wait.wait:
            return vm
        count = vm["spec"][f"{action}s"]
        progress.waiting(
            client, "vms", vm["id"], action,
            lambda current: current is None or current["status"][f"{action}s"] >= count, wait.timeout_s,
        )  # fmt: skip
        return _waited(client, vm, ("running",), wait.timeout_s, None)

    vms = _in_turn(_in_turn(refs, lambda ref: client.act("vms", ref, action)), end)
    _show_all(vms, wait, lambda vm: _as_it_is(vm, ("running",), None if wait.wait else f"{action} requested"))


@app.command()
@options.expand
def kill(vm: VmRefs, wait: Wait = Wait()) -> None:
    """Power off VMs immediately. Data that their guests have not written to disk is lost."""
    _act(vm, "stop", "stopped", wait, {"timeout_s": 0})


@app.command()
@options.expand
def delete(
    vm: VmRefs,
    force: Annotated[bool, typer.Option("--force", help="delete the VM without its node, which is gone")] = False,
    confirm: options.Confirm = None,
    yes: options.Yes = False,
    wait: QuietWait = QuietWait(wait=False, timeout_s=120),
) -> None:
    """Delete VMs with their disks and snapshots."""
    client = _connect()

    def remove(ref: str) -> Object:
        current = client.get("vms", ref)
        id = current["id"]
        if force:
            client.delete_lost_vm(id, confirm or (current["node"] and options.ask_for_word(current["node"])))
        else:
            options.ask(yes, current["status"]["state"] == "running", f"VM {current['name']} is running")
            client.delete("vms", id)
        return current

    def end(found: Object) -> Object:
        if wait.wait:
            name = found["name"]
            progress.waiting(
                client, "vms", found["id"], f"deleting {name}", lambda current: current is None, wait.timeout_s
            )
        say(f"{found['name']}: {'deleted' if wait.wait else 'deleting'}")
        return found

    vms = _in_turn(_in_turn(vm, remove), end)
    if vms.code:
        raise typer.Exit(vms.code)


@app.command()
def rename(vm: VmRef, new: Annotated[str, typer.Argument(help="its new name", show_default=False)]) -> None:
    """Rename a VM."""
    with output.errors():
        say(f"{vm}: now {Client().configure_vm(vm, name=new)['name']}")


@app.command()
@options.expand
def recover(
    vm: VmRef,
    confirm: options.Confirm = None,
    discard_disk: Annotated[
        bool, typer.Option("--discard-disk", help="start with a new disk if the old one was only on that node")
    ] = False,
    wait: Wait = Wait(),
) -> None:
    """Recover a VM whose node is gone, on another node or on the same one once it has joined again."""
    with output.errors():
        client = Client()
        current = client.get("vms", vm)
        if confirm is None and current["node"] is not None:
            confirm = options.ask_for_word(current["node"])
        recovered = client.recover_vm(current["id"], confirm, discard_disk)
        finish(client, recovered, (recovered["spec"]["power"],), wait)


@app.command()
def console(
    vm: VmRef,
    serial: Annotated[
        int, typer.Option(min=0, max=3, help="further serial port, from 1 to 3; by default the console's")
    ] = 0,
) -> None:
    """Connect this terminal to the VM's serial console; Ctrl-] q leaves, Ctrl-] ? shows more keys."""
    from novacron.cli.console import attach

    with output.errors():
        attach(Client(), vm, serial)


@app.command()
def display(
    vm: VmRef, port: Annotated[int, typer.Option(min=0, max=65535, help="local port; a free one if not given")] = 0
) -> None:
    """Serve the VM's display to VNC viewers on this machine."""
    from novacron.cli.console import serve_display

    with output.errors():
        serve_display(Client(), vm, port)


@app.command()
def screenshot(vm: VmRef, file: Annotated[Path, typer.Argument(help="PNG file to write", show_default=False)]) -> None:
    """Save a screenshot of the VM's display."""
    with output.errors():
        shown = Client().screenshot(vm)
        with private_file.opened(file) as opened:
            opened.write(shown)
        say(f"{vm}: {file}")


@app.command()
def log(
    vm: VmRef, size: Annotated[int, typer.Option(min=1, max=1024, help="number of KiB to show, from the end")] = 64
) -> None:
    """Show the end of the guest's serial console log, also after a crash."""
    with output.errors():
        say_lines(Client().console_log(vm, size << 10).decode(errors="replace"))


@app.command()
@options.expand
def migrate(
    vm: VmRef,
    fields: Annotated[Object, move_options.MIGRATE_OPTIONS],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only estimate the duration")] = False,
    unschedule: Annotated[bool, typer.Option("--unschedule", help="cancel a scheduled move")] = False,
    wait: Wait = Wait(wait=True, timeout_s=3600),
) -> None:
    """Move a VM to another node: live if it runs; now, or at a later time."""
    from novacron.cli.migrations import ESTIMATE, finish

    with output.errors():
        client = Client()
        if dry_run:
            target = {"target": fields.get("target")}
            output.fields(client.act("vms", vm, "foresee-migration", target), ESTIMATE, wait.output)
        elif unschedule:
            move_options.unschedule(client, vm)
        elif fields.get("not_before") or fields.get("deadline"):
            move_options.schedule(client, vm, fields)
        else:
            finish(client, client.act("vms", vm, "migrate", fields), wait)
