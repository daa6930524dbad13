"""``novacron project``, ``platform-key``, ``user``, ``grant`` and ``whoami``: ownership and permissions."""

from __future__ import annotations

import dataclasses
import getpass
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from novacron.cli import metadata, options, output, unencrypted, updates
from novacron.cli.lists import Listing
from novacron.cli.names import names_of
from novacron.cli.output import Columns, Output, OutputFormat
from novacron.client import Client
from novacron.terminal import say

projects = typer.Typer(no_args_is_help=True, help="Manage projects and their quotas.")
platform_keys = typer.Typer(no_args_is_help=True, help="Manage the platform key, which wraps projects' keys.")
users = typer.Typer(no_args_is_help=True, help="Manage users: people and service accounts.")
grants = typer.Typer(no_args_is_help=True, help="Manage the roles of users in projects.")

QUOTAS = (
    "vms", "vcpus", "memory_mib", "disk_mib", "snapshots", "snapshot_mib", "images", "image_mib", "backups",
    "backup_mib", "networks", "forwards", "migrations",
)  # fmt: skip


class OnOff(StrEnum):
    ON = "on"
    OFF = "off"


ProjectName = Annotated[
    str, typer.Argument(help="name of the project", autocompletion=names_of("projects"), show_default=False)
]
UserRef = Annotated[
    str, typer.Argument(help="name or id of the user", autocompletion=names_of("users"), show_default=False)
]
QuotaTexts = Annotated[
    list[str] | None,
    typer.Option(help=f"KEY=NUMBER or KEY=none, of {', '.join(QUOTAS)}; can be repeated"),
]
HostNetwork = Annotated[
    bool | None,
    typer.Option("--host-network/--no-host-network", help="put VMs without a network on the hosts' own network"),
]
Encryption = Annotated[OnOff | None, typer.Option(help="encrypt new objects at rest; needs a platform key")]
Password = Annotated[bool, typer.Option("--password", help="prompt for a password, or read it from standard input")]


def _limits(quota: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in quota.items() if value is not None]


PROJECTS: Columns = {
    "NAME": lambda p: p["name"],
    "QUOTA": lambda p: _limits(p["quota"]),
    "HOST NETWORK": lambda p: p["host_network"],
    "DEFAULT NETWORK": lambda p: p.get("default_network"),
    "ENCRYPTION": lambda p: p["encryption_key"] if p["encryption"] else "off",
    "DESCRIPTION": lambda p: p["description"],
    "AGE": lambda p: output.age(p["created_at"]),
}
ERASED_KEY: Columns = {
    "KEY": lambda e: e["id"],
    "PROJECT": lambda e: e["project"],
    "ERASED AT": lambda e: e["erased_at"],
    "VMS LOST": lambda e: e["vms"],
    "VOLUMES LOST": lambda e: e["volumes"],
    "IMAGES LOST": lambda e: e["images"],
    "BACKUPS LOST": lambda e: e.get("backups", ()),
    "NEXT KEY": lambda e: e["successor"],
}
PLATFORM_KEY: Columns = {
    "ID": lambda k: k["id"],
    "KEYS WRAPPED": lambda k: [f"{count} by {id}" for id, count in sorted(k["keys"].items())],
}
USERS: Columns = {
    "NAME": lambda u: u["name"],
    "KIND": lambda u: u["kind"],
    "PROJECT": lambda u: u["project"],
    "VOUCHED FOR BY": lambda u: u["issuer"],
    "DISABLED": lambda u: u["disabled"],
    "AGE": lambda u: output.age(u["created_at"]),
}
GRANTS: Columns = {
    "ID": lambda g: g["id"],
    "USER": lambda g: g["user_name"],
    "ROLE": lambda g: g["role"],
    "PROJECT": lambda g: g["project"] or "(everywhere)",
    "AGE": lambda g: output.age(g["created_at"]),
}
ERASED: Columns = {"PSEUDONYM": lambda e: e["pseudonym"], "AUDIT RECORDS": lambda e: e["records"]}
ME: Columns = {
    "USER": lambda m: m["user"],
    "TOKEN": lambda m: m["token"],
    "OWN PROJECT": lambda m: m["project"],
    "EVERYWHERE": lambda m: m["everywhere"],
    "IN PROJECTS": lambda m: [f"{name}: {' '.join(rights)}" for name, rights in m["projects"].items()],
}


def _quota(texts: list[str] | None, current: dict[str, Any]) -> dict[str, Any]:
    quota = dict(current)
    for text in texts or ():
        key, _, value = text.partition("=")
        if key not in QUOTAS or not (value.isdecimal() or value == "none"):
            raise typer.BadParameter(f"{text!r}: write KEY=NUMBER or KEY=none", param_hint="--quota")
        quota[key] = None if value == "none" else int(value)
    return quota


def _asked_password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    first = getpass.getpass("password: ")
    if getpass.getpass("once more: ") != first:
        raise output.fail("the passwords differ", output.EXIT_USAGE)
    return first


@projects.command("list")
@options.expand
def list_projects(tag: metadata.TagFilter = None, listing: Listing = Listing()) -> None:
    """List the projects that you can see."""
    listing.show("projects", PROJECTS, tag=tag)


@projects.command("show")
def show_project(project: ProjectName, output_: Output = OutputFormat.TABLE) -> None:
    """Show a project's usage and quota."""
    with output.errors():
        usage = Client().usage(project)
        if not output_.for_people:
            output.show(usage, output_)
            return
        rows = [{"what": key, "has": usage["usage"][key], "may": usage["quota"][key]} for key in QUOTAS]
        output.table(rows, {"WHAT": lambda r: r["what"], "HAS": lambda r: r["has"], "MAY HAVE": lambda r: r["may"]})


@projects.command("create")
def create_project(
    project: ProjectName,
    description: Annotated[str, typer.Option(help="what it is for")] = "",
    quota: QuotaTexts = None,
    host_network: HostNetwork = False,
    encryption: Encryption = None,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Create a project."""
    with output.errors():
        created = Client().create_project(
            project,
            description=description,
            quota=_quota(quota, {}),
            host_network=bool(host_network),
            encryption=encryption is OnOff.ON,
        )
        output.fields(created, PROJECTS, output_)


@dataclasses.dataclass(frozen=True)
class ProjectChanges:
    """What of a project can change, besides its quota; None stays."""

    name: Annotated[str | None, typer.Option(help="its new name")] = None
    host_network: HostNetwork = None
    encryption: Encryption = None


@projects.command("set")
@options.expand
def set_project(
    project: ProjectName,
    described: metadata.Changes,
    changed: ProjectChanges = ProjectChanges(),
    quota: QuotaTexts = None,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Change a project's name, description, tags, quota or encryption."""
    changes: dict[str, Any] = {f: value for f, value in vars(changed).items() if value is not None} | described
    if changed.encryption is not None:
        changes["encryption"] = changed.encryption is OnOff.ON
    with output.errors():
        client = Client()
        if not changes and not quota:
            raise typer.BadParameter("nothing to change: specify an option")
        changed_project = client.configure_project(project, **changes) if not quota else updates.update(
            client, "projects", project, lambda now: {**changes, "quota": _quota(quota, now["quota"])}
        )  # fmt: skip
        output.fields(changed_project, PROJECTS, output_)
        if changes.get("encryption"):
            unencrypted.warn(client, project)


@projects.command("delete")
def delete_project(project: ProjectName) -> None:
    """Delete an empty project."""
    with output.errors():
        Client().delete("projects", project)
        say(f"{project}: deleted")


@projects.command("erase-key")
def erase_key(
    project: ProjectName,
    confirm: Annotated[str | None, typer.Option(metavar="NAME", help="the project's name, to confirm")] = None,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Destroy a project's key: nothing that it encrypts, including copies, can ever be read again."""
    if confirm is None:
        confirm = typer.prompt(f"all that project {project} has encrypted is lost for ever; its name", err=True)
    if confirm != project:
        raise output.fail(f"{confirm!r} is not the project's name: nothing was changed", output.EXIT_USAGE)
    with output.errors():
        output.fields(Client().erase_project_key(project), ERASED_KEY, output_)


@platform_keys.command("show")
def show_platform_key(output_: Output = OutputFormat.TABLE) -> None:
    """Show the platform key and how many projects' keys each platform key has wrapped."""
    with output.errors():
        output.fields(Client().platform_key(), PLATFORM_KEY, output_)


@platform_keys.command("rewrap")
def rewrap(output_: Output = OutputFormat.TABLE) -> None:
    """Wrap all projects' keys with the current platform key; no data is changed."""
    with output.errors():
        client = Client()
        stands = client.rewrap_project_keys()
        while stands["keys"].keys() - {stands["id"]} and (now := client.rewrap_project_keys()) != stands:
            stands = now
        output.fields(stands, PLATFORM_KEY, output_)


@users.command("list")
@options.expand
def list_users(listing: Listing = Listing()) -> None:
    """List users."""
    listing.show("users", USERS)


@users.command("create")
def create_user(
    user: UserRef,
    service: Annotated[
        bool, typer.Option("--service", help="create a service account: it has tokens but no password")
    ] = False,
    project: Annotated[str | None, typer.Option(help="project whose administrators manage the service account")] = None,
    password: Password = False,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Create a user, without any rights yet: see novacron grant."""
    with output.errors():
        secret = _asked_password() if password else None
        kind = "service" if service else "person"
        output.fields(Client().create_user(user, kind=kind, project=project, password=secret), USERS, output_)


@users.command("set-password")
def set_password(user: UserRef) -> None:
    """Set a password, prompted for or read from standard input. The user's sessions end."""
    with output.errors():
        client = Client()
        present = None
        if sys.stdin.isatty() and client.me()["user"] == user:
            present = getpass.getpass("current password (empty if there is none): ")
        client.set_password(user, _asked_password(), present)
        say(f"{user}: the password is changed")


@users.command("disable")
def disable(user: UserRef) -> None:
    """Disable a user immediately."""
    with output.errors():
        Client().configure_user(user, disabled=True)
        say(f"{user}: disabled")


@users.command("enable")
def enable(user: UserRef) -> None:
    """Enable a user again."""
    with output.errors():
        Client().configure_user(user, disabled=False)
        say(f"{user}: enabled")


@users.command("require-second-factor")
def require_second_factor(
    user: UserRef,
    required: Annotated[
        bool, typer.Option("--on/--off", help="require a second factor for logins with the password")
    ] = True,
) -> None:
    """Require a second factor for a user's logins. Their sessions end; their API tokens stay valid."""
    with output.errors():
        Client().require_second_factor(user, required)
        say(f"{user}: a second factor is {'required' if required else 'not required'}")


@users.command("default-project")
def set_default_project(
    project: Annotated[
        str | None, typer.Argument(help="name of the project; none: the default", show_default=False)
    ] = None,
) -> None:
    """Set the project in which your new objects are created by default."""
    with output.errors():
        Client().configure_me(default_project=project)
        say(f"new objects: in {project or 'your only project, or the project default'}")


@users.command("delete")
def delete_user(user: UserRef) -> None:
    """Delete a user with all tokens and roles."""
    with output.errors():
        Client().delete("users", user)
        say(f"{user}: deleted")


@users.command("erase")
def erase(
    user: Annotated[str, typer.Argument(help="name or id, also of a deleted user", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Delete a user, and permanently replace their name and addresses in all records with a pseudonym."""
    if not yes:
        typer.confirm(f"Erase {user} in all records? This can't be undone", abort=True, err=True)
    with output.errors():
        output.fields(Client().erase_user(user), ERASED, output_)


@grants.command("list")
@options.expand
def list_grants(
    user: Annotated[str | None, typer.Option(help="only roles of this user")] = None, listing: Listing = Listing()
) -> None:
    """List the roles of users, and the projects in which they have them."""
    listing.show("grants", GRANTS, user=user)


@grants.command("create")
def create_grant(
    user: UserRef,
    role: Annotated[str, typer.Argument(help="viewer, member, operator or administrator", show_default=False)],
    project: Annotated[str | None, typer.Option(help="project; default: all projects and the fleet")] = None,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Grant a user a role, which replaces their role there. Users whom you do not manage get an invitation."""
    with output.errors():
        created = Client().grant(user, role, project)
        if "expires_at" in created and output_.for_people:
            say(f"{user} is invited, and gets the role once they accept: novacron invitation accept {created['id']}")
        else:
            output.fields(created, GRANTS, output_)


@grants.command("delete")
def delete_grant(id: Annotated[str, typer.Argument(help="id of the grant", show_default=False)]) -> None:
    """Revoke a user's role immediately."""
    with output.errors():
        Client().delete("grants", id)
        say(f"{id}: deleted")


def whoami(output_: Output = OutputFormat.TABLE) -> None:
    """Show the user that you are logged in as, and its rights."""
    with output.errors():
        output.fields(Client().me(), ME, output_)
