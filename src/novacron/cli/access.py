"""``novacron project``, ``user``, ``grant`` and ``whoami``: ownership and permissions."""

from __future__ import annotations

import getpass
import sys
from typing import Annotated, Any

import typer

from novacron.cli import output
from novacron.cli.output import Columns, Output, OutputFormat
from novacron.client import Client
from novacron.terminal import say

projects = typer.Typer(no_args_is_help=True, help="Manage projects and their quotas.")
users = typer.Typer(no_args_is_help=True, help="Manage users: people and service accounts.")
grants = typer.Typer(no_args_is_help=True, help="Manage who has which role in which project.")

QUOTAS = ("vms", "vcpus", "memory_mib", "disk_mib", "snapshots", "networks", "forwards", "migrations")
ProjectName = Annotated[str, typer.Argument(help="name of the project", show_default=False)]
UserRef = Annotated[str, typer.Argument(help="name or id of the user", show_default=False)]
QuotaTexts = Annotated[
    list[str] | None,
    typer.Option(help=f"KEY=NUMBER or KEY=none, of {', '.join(QUOTAS)}; can be repeated"),
]
HostNetwork = Annotated[
    bool | None,
    typer.Option("--host-network/--no-host-network", help="put VMs without a network on the hosts' own network"),
]
Password = Annotated[bool, typer.Option("--password", help="ask for a password, or read it from standard input")]


def _limits(quota: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in quota.items() if value is not None]


PROJECTS: Columns = {
    "NAME": lambda p: p["name"],
    "QUOTA": lambda p: _limits(p["quota"]),
    "HOST NETWORK": lambda p: p["host_network"],
    "DESCRIPTION": lambda p: p["description"],
    "AGE": lambda p: output.age(p["created_at"]),
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
def list_projects(output_: Output = OutputFormat.TABLE) -> None:
    """List the projects that you can see."""
    with output.errors():
        output.rows(Client().list("projects"), PROJECTS, output_)


@projects.command("show")
def show_project(project: ProjectName, output_: Output = OutputFormat.TABLE) -> None:
    """Show a project's usage and quota."""
    with output.errors():
        usage = Client().usage(project)
        if output_ is OutputFormat.JSON:
            output.show_json(usage)
            return
        rows = [{"what": key, "has": usage["usage"][key], "may": usage["quota"][key]} for key in QUOTAS]
        output.table(rows, {"WHAT": lambda r: r["what"], "HAS": lambda r: r["has"], "MAY HAVE": lambda r: r["may"]})


@projects.command("create")
def create_project(
    project: ProjectName,
    description: Annotated[str, typer.Option(help="what it is for")] = "",
    quota: QuotaTexts = None,
    host_network: HostNetwork = False,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Create a project."""
    with output.errors():
        created = Client().create_project(
            project, description=description, quota=_quota(quota, {}), host_network=bool(host_network)
        )
        output.fields(created, PROJECTS, output_)


@projects.command("set")
def set_project(
    project: ProjectName,
    name: Annotated[str | None, typer.Option(help="its new name")] = None,
    description: Annotated[str | None, typer.Option(help="what it is for")] = None,
    quota: QuotaTexts = None,
    host_network: HostNetwork = None,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Change a project's name, description or quota."""
    options_ = {"name": name, "description": description, "host_network": host_network}
    changes: dict[str, Any] = {field: value for field, value in options_.items() if value is not None}
    with output.errors():
        client = Client()
        if quota:
            changes["quota"] = _quota(quota, client.get("projects", project)["quota"])
        if not changes:
            raise typer.BadParameter("nothing to change: give an option")
        output.fields(client.configure_project(project, **changes), PROJECTS, output_)


@projects.command("delete")
def delete_project(project: ProjectName) -> None:
    """Delete an empty project."""
    with output.errors():
        Client().delete("projects", project)
        say(f"{project}: deleted")


@users.command("list")
def list_users(output_: Output = OutputFormat.TABLE) -> None:
    """List users."""
    with output.errors():
        output.rows(Client().list("users"), USERS, output_)


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
    """Create a user, without any permission yet: see novacron grant."""
    with output.errors():
        secret = _asked_password() if password else None
        kind = "service" if service else "person"
        output.fields(Client().create_user(user, kind=kind, project=project, password=secret), USERS, output_)


@users.command("set-password")
def set_password(user: UserRef) -> None:
    """Set a password, asked for or read from standard input. The user's sessions end."""
    with output.errors():
        client = Client()
        present = None
        if sys.stdin.isatty() and client.me()["user"] == user:
            present = getpass.getpass("current password (empty if there is none): ")
        client.set_password(user, _asked_password(), present)
        say(f"{user}: the password is changed")


@users.command("disable")
def disable(user: UserRef) -> None:
    """Disable a user, at once."""
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
    required: Annotated[bool, typer.Option("--on/--off", help="whether logins with the password demand one")] = True,
) -> None:
    """Require a second factor of a user's logins. Their sessions end; their API tokens stay."""
    with output.errors():
        Client().require_second_factor(user, required)
        say(f"{user}: a second factor is {'required' if required else 'not required'}")


@users.command("default-project")
def set_default_project(
    project: Annotated[
        str | None, typer.Argument(help="name of the project; none: the usual one", show_default=False)
    ] = None,
) -> None:
    """Set the project in which your own new objects are created, unless you name another one."""
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
    user: Annotated[str, typer.Argument(help="name or id, also of a user who was deleted", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Delete a user, and put a pseudonym in place of their name and addresses in all records, for good."""
    if not yes:
        typer.confirm(f"Erase {user} in all records? This can't be undone", abort=True, err=True)
    with output.errors():
        output.fields(Client().erase_user(user), ERASED, output_)


@grants.command("list")
def list_grants(
    user: Annotated[str | None, typer.Option(help="only roles of this user")] = None,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """List which user has which role where."""
    with output.errors():
        grants_ = (grant for grant in Client().list("grants") if user in (None, grant["user"], grant["user_name"]))
        output.rows(grants_, GRANTS, output_)


@grants.command("create")
def create_grant(
    user: UserRef,
    role: Annotated[str, typer.Argument(help="viewer, member, operator or administrator", show_default=False)],
    project: Annotated[str | None, typer.Option(help="project; everywhere if not given")] = None,
    output_: Output = OutputFormat.TABLE,
) -> None:
    """Give a user a role, instead of the one that they have there. Users whom you do not manage are invited."""
    with output.errors():
        created = Client().grant(user, role, project)
        if "expires_at" in created and output_ is OutputFormat.TABLE:
            say(f"{user} is invited, and has the role once they accept: novacron invitation accept {created['id']}")
        else:
            output.fields(created, GRANTS, output_)


@grants.command("delete")
def delete_grant(id: Annotated[str, typer.Argument(help="id of the grant", show_default=False)]) -> None:
    """Revoke a user's role, at once."""
    with output.errors():
        Client().delete("grants", id)
        say(f"{id}: deleted")


def whoami(output_: Output = OutputFormat.TABLE) -> None:
    """Show who you are to the API, and your permissions."""
    with output.errors():
        output.fields(Client().me(), ME, output_)
