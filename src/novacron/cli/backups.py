"""``novacron backup``: back VMs up into repositories, and make VMs of backups."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from novacron import private_file
from novacron.cli import backup_files, backup_policies, options, output, progress
from novacron.cli.backup_policies import KEEP_OPTIONS, PROBE_OPTIONS, parse_days
from novacron.cli.lists import Listing
from novacron.cli.metadata import check_given
from novacron.cli.names import names_of
from novacron.cli.options import QuietWait, Wait
from novacron.cli.output import Columns, Object, Output, OutputFormat
from novacron.cli.vms import VmRef, finish
from novacron.client import Client
from novacron.terminal import say

app = typer.Typer(no_args_is_help=True, help="Back up VMs, and restore them.")
repositories = typer.Typer(no_args_is_help=True, help="Manage backup repositories.")
app.add_typer(repositories, name="repository")
app.add_typer(backup_policies.app, name="policy")
app.command("files")(backup_files.files)
app.command("pull")(backup_files.pull)

RepositoryRef = Annotated[
    str,
    typer.Argument(
        metavar="repository", help="name or id of the repository", autocompletion=names_of("backup-repositories"),
        show_default=False,
    ),
]  # fmt: skip
PRUNE_DAYS = options.option(
    "prune_days", str, "--prune-days", convert=parse_days, metavar="DAYS",
    help="days between two prunes on each node, which free the space of deleted backups; none: never; by default 7",
)  # fmt: skip
RESTORE_OPTIONS = (
    options.option("node", str, help="node to run on; by default the one that made the backup"),
    options.option(
        "power", bool, "--start/--no-start", default=True, help="start the new VM at once",
        convert=lambda starts: "running" if starts else "stopped",
    ),
    options.option("live", bool, "--live", help="start the VM at once; its disk is fetched while it runs"),
    options.option(
        "bytes_per_s", str, "--rate", convert=output.parse_rate, metavar="RATE",
        help="with --live: how much of the disk to fetch beside what the guest reads, such as 50M; by default no limit",
    ),
    options.option(
        "keep_macs", bool, "--keep-mac/--new-mac",
        help="keep the original VM's MAC addresses, or assign new ones; by default keep those that no other VM has",
    ),
)  # fmt: skip
ENDS = ("Restored", "RestoreFailed")
"""Events that say how it ended to replace a VM's disk."""
BackupId = Annotated[str, typer.Argument(metavar="backup", help="id of the backup", show_default=False)]

COLUMNS: Columns = {
    "BACKUP": lambda b: b["id"],
    "VM": lambda b: b["vm_name"],
    "REPOSITORY": lambda b: b["repository_name"],
    "PHASE": lambda b: b["phase"],
    "VERIFIED": lambda b: output.age(b["verified_at"]) if b["verified_at"] else None,
    "PROVED": lambda b: _proved(b),
    "DISK": lambda b: _size(b, "disk_bytes"),
    "WRITTEN": lambda b: _size(b, "written_bytes"),
    "AGE": lambda b: output.age(b["created_at"]),
    "ERROR": lambda b: b["error"],
}
DETAILS: Columns = {
    **COLUMNS,
    "READ": lambda b: f"{_size(b, 'read_bytes')}, {_read(b)}" if b["result"]["snapshot"] else None,
    "PROOF": lambda b: _proof(b["proof"]) if b["proof"] else None,
    "PARENT": lambda b: b["result"]["parent"] or None,
    "QUIESCED": lambda b: "yes" if b["result"]["quiesced"] else "no",
    "NOT INCLUDED": lambda b: ", ".join(volume["name"] for volume in b["excluded_volumes"]) or None,
    "ENCRYPTION": lambda b: b.get("encryption_key") or "off",
    "POLICY": lambda b: b["policy"] or None,
    "NODE": lambda b: b["node"],
    "SNAPSHOT": lambda b: b["result"]["snapshot"] or None,
}
REPOSITORIES: Columns = {
    "NAME": lambda r: r["name"],
    "ID": lambda r: r["id"],
    "PROJECT": lambda r: r["project"],
    "PRUNED": lambda r: f"every {r['prune_days']} days" if r["prune_days"] else "never",
    "AGE": lambda r: output.age(r["created_at"]),
}
REPOSITORY_DETAILS: Columns = {
    **REPOSITORIES,
    "ASKED TO PRUNE": lambda r: output.when(r["prune_asked_at"]),
    "LAST PRUNED": lambda r: [_pruned(prune) for prune in r["prunes"]],
}


def _pruned(prune: Object) -> str:
    """Say how it last went to free room on a node."""
    if prune["at"] is None:
        return f"{prune['node']}: not yet"
    how = prune["error"] or (f"{prune['freed']} freed" if prune["freed"] else "nothing to free")
    return f"{prune['node']}, {output.age(prune['at'])} ago: {how}"


def _proved(backup: Object) -> str | None:
    """Say in a list whether a VM made of a backup starts, as far as that was tried."""
    proof = backup["proof"]
    if proof is None:
        return None
    return output.age(proof["since"]) if proof["phase"] == "proved" else str(proof["phase"])


def _proof(proof: Object) -> str:
    """Say how a proof ended, or how far it is."""
    if proof["phase"] == "proved":
        return f"proved: {proof['answer']}, after {proof['start_s']:.0f} s"
    return f"{proof['phase']}: {proof['error']}" if proof["error"] else str(proof["phase"])


def _read(backup: Object) -> str:
    """Say how much of the disk was read, and why."""
    result = backup["result"]
    return f"{result['mode']}, because {result['mode_reason']}" if result["mode_reason"] else str(result["mode"])


def _size(backup: Object, field: str) -> str | None:
    return output.size(backup["result"][field]) if backup["result"]["snapshot"] else None


@repositories.command("list")
@options.expand
def list_repositories(listing: Listing = Listing()) -> None:
    """List repositories."""
    listing.show("backup-repositories", REPOSITORIES)


@repositories.command("show")
def show_repository(repository: RepositoryRef, output_: Output = OutputFormat.TABLE) -> None:
    """Show a repository, and when each node last freed the space of deleted backups."""
    with output.errors():
        output.fields(Client().get("backup-repositories", repository), REPOSITORY_DETAILS, output_)


@repositories.command("create")
@options.expand
def create_repository(
    name: Annotated[str, typer.Argument(help="lower-case letters, digits and hyphens", show_default=False)],
    fields: Annotated[Object, (PRUNE_DAYS,)],
) -> None:
    """Create a repository for backups of the project's VMs. Then store its password outside the platform."""
    with output.errors():
        created = Client().create_backup_repository(name, **fields)
        say(f"{name}: created, as {created['id']}")
        say(f"keep its password where it outlives this platform: novacron backup repository password {name}", err=True)


@repositories.command("set")
@options.expand
def set_repository(repository: RepositoryRef, changes: Annotated[Object, (PRUNE_DAYS,)]) -> None:
    """Change how often the space of deleted backups is freed."""
    with output.errors():
        check_given(changes)
        Client().configure_backup_repository(repository, **changes)
        say(f"{repository}: changed")


@repositories.command("prune")
def prune_repository(repository: RepositoryRef) -> None:
    """Free the space of deleted backups now, on each node that has backups in the repository."""
    with output.errors():
        Client().prune_backup_repository(repository)
        say(f"{repository}: is being pruned; see: novacron backup repository show {repository}")


@repositories.command("password")
def show_password(repository: RepositoryRef) -> None:
    """Print the password of a repository, which restic also needs. Keep it as secret as the VMs in the repository."""
    with output.errors():
        say(Client().backup_repository_password(repository))


@repositories.command("delete")
def delete_repository(repository: RepositoryRef) -> None:
    """Delete the record of a repository without backups. Its directory stays on the nodes; its password is deleted."""
    with output.errors():
        Client().delete("backup-repositories", repository)
        say(f"{repository}: forgotten; its directory stays where it is")


@app.command("list")
@options.expand
def list_(
    vm: Annotated[str | None, typer.Option(help="only backups of this VM")] = None,
    repository: Annotated[str | None, typer.Option(help="only backups in this repository")] = None,
    policy: Annotated[str | None, typer.Option(help="only backups made by this policy")] = None,
    listing: Listing = Listing(),
) -> None:
    """List backups, newest first."""
    listing.show("backups", COLUMNS, vm=vm, repository=repository, policy=policy)


@app.command()
def show(backup: BackupId, output_: Output = OutputFormat.TABLE) -> None:
    """Show a backup: the data read and written for it, and when it was verified."""
    with output.errors():
        output.fields(Client().get("backups", backup), DETAILS, output_)


@app.command()
@options.expand
def create(
    vm: VmRef,
    repository: Annotated[
        str,
        typer.Option(
            help="repository, by name or id", autocompletion=names_of("backup-repositories"), show_default=False
        ),
    ],
    wait: QuietWait = QuietWait(timeout_s=3600),
) -> None:
    """Back up a VM, running or not: its own disk and its firmware's state, but no volumes."""
    with output.errors():
        client = Client()
        backup = client.back_up_vm(vm, repository)
        if backup["excluded_volumes"]:
            names = ", ".join(volume["name"] for volume in backup["excluded_volumes"])
            say(f"volumes that the backup does not include: {names}", err=True)
        last = _follow(client, backup, f"backing up {vm}", wait)
        if last is not None and wait.wait:
            say(f"written: {_size(last, 'written_bytes')}, of a disk of {_size(last, 'disk_bytes')}")
            say(f"read: {_size(last, 'read_bytes')}, {_read(last)}")


@app.command()
@options.expand
def verify(backup: BackupId, wait: QuietWait = QuietWait(timeout_s=3600)) -> None:
    """Verify a backup by reading all of it back from its repository."""
    with output.errors():
        client = Client()
        _follow(client, client.verify_backup(backup), f"verifying {backup}", wait)


@app.command()
@options.expand
def prove(
    backup: BackupId, probe: Annotated[Object, PROBE_OPTIONS], wait: QuietWait = QuietWait(timeout_s=7200)
) -> None:
    """Prove that a backup boots: start an isolated VM from it, then delete that VM."""
    with output.errors():
        client = Client()
        asked = client.prove_backup(backup, **probe.get("probe", {}))
        if not wait.wait:
            say(f"{backup}: {asked['proof']['phase']}")
            return
        last = progress.waiting(
            client, "backups", backup, f"proving {backup}",
            lambda now: now is None or now["proof"]["phase"] in ("proved", "failed"), wait.timeout_s,
        )  # fmt: skip
        if last is None or last["proof"]["phase"] == "failed":
            why = "it was deleted" if last is None else last["proof"]["error"]
            raise output.fail(f"backup {backup} could not be proved: {why}", output.EXIT_FAILED)
        say(f"{backup}: {_proof(last['proof'])}")


@app.command()
def picture(
    backup: BackupId, file: Annotated[Path, typer.Argument(help="PNG file to write", show_default=False)]
) -> None:
    """Save the screenshot that was taken when a backup was proved."""
    with output.errors():
        picture = Client().backup_picture(backup)
        with private_file.opened(file) as opened:
            opened.write(picture)


@app.command()
@options.expand
def restore(
    backup: BackupId,
    fields: Annotated[Object, RESTORE_OPTIONS],
    name: Annotated[
        str | None, typer.Argument(help="name of the new VM; not with --in-place", show_default=False)
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="replace the disk of the VM that was backed up, which must be off")
    ] = False,
    yes: options.Yes = False,
    wait: Wait = Wait(wait=True, timeout_s=7200),
) -> None:
    """Restore a backup into a new VM, with its MAC addresses where they are free, or in place of its VM's disk."""
    if in_place == (name is not None):
        raise typer.BadParameter("give the name of the new VM, or --in-place", param_hint="'NAME'")
    if in_place and "node" in fields:
        raise typer.BadParameter(
            "--node can't be combined with --in-place: the VM stays on its node", param_hint="'--node'"
        )
    if in_place and "keep_macs" in fields:
        raise typer.BadParameter("a VM keeps its addresses when its disk is replaced", param_hint="'--keep-mac'")
    if in_place and "live" in fields:
        raise typer.BadParameter("--live makes a new VM: it does not go with --in-place", param_hint="'--live'")
    if "bytes_per_s" in fields and "live" not in fields:
        raise typer.BadParameter("--rate limits what --live fetches: leave it out", param_hint="'--rate'")
    with output.errors():
        client = Client()
        if in_place:
            _replace(client, backup, yes=yes, wait=wait)
            return
        finish(client, client.restore_backup(backup, str(name), **fields), (fields["power"],), wait)
        if fields.get("live"):
            say(f"its disk is being fetched from {backup}; see: novacron vm show {name}", err=True)


def _replace(client: Client, backup: str, *, yes: bool, wait: Wait) -> None:
    made = client.get("backups", backup)
    what = f"All that VM {made['vm_name']} has written to its disk since {output.when(made['created_at'])} is lost"
    options.ask(yes, True, what, "Put the backup in its place?")
    vm = client.replace_with_backup(backup)
    if wait.wait:
        progress.waiting(
            client, "vms", vm["id"], f"restoring {vm['name']}", lambda now: now is None or now["clone_of"] is None,
            wait.timeout_s,
        )  # fmt: skip
        events = client.list("events", limit=20, object=vm["id"])
        said = next((event for event in events if event["reason"] in ENDS), None)
        if said is not None and said["reason"] == "RestoreFailed":
            raise output.fail(f"VM {vm['name']} could not be restored {said['message']}", output.EXIT_FAILED)
    say(f"{vm['name']}: {f'its disk is that of {backup}' if wait.wait else 'its disk is being restored'}")


@app.command()
@options.expand
def delete(backup: BackupId, wait: QuietWait = QuietWait(timeout_s=3600)) -> None:
    """Delete a backup from its repository, or cancel it. restic prune frees the space."""
    with output.errors():
        _delete(Client(), backup, wait)


def _delete(client: Client, backup: str, wait: QuietWait) -> None:
    client.delete("backups", backup)
    if wait.wait:
        progress.waiting(
            client, "backups", backup, f"deleting backup {backup}", lambda now: now is None, wait.timeout_s
        )
    say(f"{backup}: {'deleted' if wait.wait else 'deleting'}")


@app.command()
@options.expand
def expire(
    vm: VmRef,
    counts: Annotated[Object, KEEP_OPTIONS],
    repository: Annotated[
        str | None,
        typer.Option(help="only backups in this repository", autocompletion=names_of("backup-repositories")),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show what would be deleted")] = False,
    wait: QuietWait = QuietWait(timeout_s=3600),
) -> None:
    """Delete the backups of a VM that no rule keeps, per repository. Damaged and failed ones stay."""
    from novacron.retention import Keep, to_keep  # loaded by this command only

    keep = Keep(**counts.get("keep", {}))
    if not keep.has_rules:
        raise typer.BadParameter("give at least one rule, such as --keep-daily 7", param_hint="'--keep-last'")
    with output.errors():
        client = Client()
        made: dict[str, dict[str, Object]] = {}
        for backup in client.list("backups", vm=vm):
            is_meant = repository in (None, backup["repository"], backup["repository_name"])
            if is_meant and backup["phase"] in ("kept", "verifying"):
                made.setdefault(backup["repository"], {})[backup["id"]] = backup
        for backups in made.values():
            keeping = to_keep({id: datetime.fromisoformat(b["created_at"]) for id, b in backups.items()}, keep)
            for id, backup in backups.items():
                if id in keeping:
                    say(f"{id}: kept in {backup['repository_name']}, by: {', '.join(keeping[id])}")
                elif dry_run:
                    say(f"{id}: would be deleted from {backup['repository_name']}")
                else:
                    _delete(client, id, wait)


def _follow(client: Client, backup: Object, what: str, wait: QuietWait) -> Object | None:
    """Wait until work on a backup has ended, and say how; return the backup as it is then."""
    if not wait.wait:
        say(f"{backup['id']}: {backup['phase']}")
        return backup
    last = progress.waiting(
        client, "backups", backup["id"], what,
        lambda now: now is None or now["phase"] in ("kept", "damaged", "failed"), wait.timeout_s,
    )  # fmt: skip
    if last is not None and last["error"]:
        raise output.fail(f"backup {last['id']} is {last['phase']}: {last['error']}", output.EXIT_FAILED)
    said = "deleted" if last is None else "verified" if last["verified_at"] else last["phase"]
    say(f"{backup['id']}: {said}")
    return last
