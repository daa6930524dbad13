"""``novacron project``, ``user``, ``grant``, ``audit`` and ``whoami``: whose things are whose, and who may do what."""

from __future__ import annotations

import getpass
import sys
from typing import Annotated, Any

import typer

from novacron.cli import output
from novacron.cli.output import Columns, Format, Output
from novacron.client import Client

projects = typer.Typer(no_args_is_help=True, help="Say whose VMs, volumes and networks are whose, and how many.")
users = typer.Typer(no_args_is_help=True, help="Say who there is: people, and service accounts.")
grants = typer.Typer(no_args_is_help=True, help="Say who may do what, where.")

QUOTAS = ("vms", "vcpus", "memory_mib", "disk_mib", "snapshots", "networks", "migrations")
Project = Annotated[str, typer.Argument(help="name of the project", show_default=False)]
User = Annotated[str, typer.Argument(help="name or id of the user", show_default=False)]
Quota = Annotated[
    list[str] | None,
    typer.Option(help=f"KEY=NUMBER or KEY=none, of {', '.join(QUOTAS)}; can be repeated"),
]
HostNetwork = Annotated[
    bool | None, typer.Option("--host-network/--no-host-network", help="VMs without a network are on the hosts' own")
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
AUDIT: Columns = {
    "WHEN": lambda r: r["at"][:19].replace("T", " "),
    "WHO": lambda r: r["actor"],
    "FROM": lambda r: r["address"],
    "WHAT": lambda r: r["action"],
    "OBJECT": lambda r: r["name"] or r["object"],
    "PROJECT": lambda r: r["project"],
    "OUTCOME": lambda r: r["outcome"],
    "DETAIL": lambda r: r["detail"],
}
ME: Columns = {
    "USER": lambda m: m["user"],
    "TOKEN": lambda m: m["token"],
    "OWN PROJECT": lambda m: m["project"],
    "EVERYWHERE": lambda m: m["everywhere"],
    "IN PROJECTS": lambda m: [f"{name}: {' '.join(rights)}" for name, rights in m["projects"].items()],
}


def _quota(given: list[str] | None, before: dict[str, Any]) -> dict[str, Any]:
    found = dict(before)
    for text in given or ():
        key, _, value = text.partition("=")
        if key not in QUOTAS or not (value.isdecimal() or value == "none"):
            raise typer.BadParameter(f"{text!r}: write KEY=NUMBER or KEY=none", param_hint="--quota")
        found[key] = None if value == "none" else int(value)
    return found


def _asked_password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    first = getpass.getpass("password: ")
    if getpass.getpass("once more: ") != first:
        raise output.fail("these are two passwords", output.EXIT_USAGE)
    return first


@projects.command("list")
def list_projects(output_: Output = Format.TABLE) -> None:
    """List the projects that you see."""
    with output.errors():
        output.rows(Client().list("projects"), PROJECTS, output_)


@projects.command("show")
def show_project(project: Project, output_: Output = Format.TABLE) -> None:
    """Show what a project has, and may have."""
    with output.errors():
        found = Client().usage(project)
        if output_ is Format.JSON:
            output.show_json(found)
            return
        rows = [{"what": key, "has": found["usage"][key], "may": found["quota"][key]} for key in QUOTAS]
        output.table(rows, {"WHAT": lambda r: r["what"], "HAS": lambda r: r["has"], "MAY HAVE": lambda r: r["may"]})


@projects.command("create")
def create_project(
    project: Project,
    description: Annotated[str, typer.Option(help="what it is for")] = "",
    quota: Quota = None,
    host_network: HostNetwork = False,
    output_: Output = Format.TABLE,
) -> None:
    """Create a project."""
    with output.errors():
        made = Client().create_project(
            project, description=description, quota=_quota(quota, {}), host_network=bool(host_network)
        )
        output.fields(made, PROJECTS, output_)


@projects.command("set")
def set_project(
    project: Project,
    name: Annotated[str | None, typer.Option(help="its new name")] = None,
    description: Annotated[str | None, typer.Option(help="what it is for")] = None,
    quota: Quota = None,
    host_network: HostNetwork = None,
    output_: Output = Format.TABLE,
) -> None:
    """Rename a project, or say what it may have."""
    given = {"name": name, "description": description, "host_network": host_network}
    changes: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
    with output.errors():
        client = Client()
        if quota:
            changes["quota"] = _quota(quota, client.get("projects", project)["quota"])
        if not changes:
            raise typer.BadParameter("nothing to change: give an option")
        output.fields(client.configure_project(project, **changes), PROJECTS, output_)


@projects.command("delete")
def delete_project(project: Project) -> None:
    """Delete a project that has nothing left."""
    with output.errors():
        Client().delete("projects", project)
        print(f"{project}: deleted")


@users.command("list")
def list_users(output_: Output = Format.TABLE) -> None:
    """List users."""
    with output.errors():
        output.rows(Client().list("users"), USERS, output_)


@users.command("create")
def create_user(
    user: User,
    service: Annotated[bool, typer.Option("--service", help="a program: it gets tokens, and no password")] = False,
    project: Annotated[str | None, typer.Option(help="of a service account: whose administrators see to it")] = None,
    password: Password = False,
    output_: Output = Format.TABLE,
) -> None:
    """Create a user, who may do nothing yet: see novacron grant."""
    with output.errors():
        given = _asked_password() if password else None
        kind = "service" if service else "person"
        output.fields(Client().create_user(user, kind=kind, project=project, password=given), USERS, output_)


@users.command("set-password")
def set_password(user: User) -> None:
    """Set a password; asks, or reads it from standard input. The user's sessions end."""
    with output.errors():
        client = Client()
        present = None
        if sys.stdin.isatty() and client.me()["user"] == user:
            present = getpass.getpass("present password (empty if there is none): ")
        client.set_password(user, _asked_password(), present)
        print(f"{user}: has a new password")


@users.command("disable")
def disable(user: User) -> None:
    """Let a user do nothing any more, at once."""
    with output.errors():
        Client().configure_user(user, disabled=True)
        print(f"{user}: disabled")


@users.command("enable")
def enable(user: User) -> None:
    """Let a user do again what their roles allow."""
    with output.errors():
        Client().configure_user(user, disabled=False)
        print(f"{user}: enabled")


@users.command("delete")
def delete_user(user: User) -> None:
    """Delete a user, with all tokens and roles."""
    with output.errors():
        Client().delete("users", user)
        print(f"{user}: deleted")


@grants.command("list")
def list_grants(
    user: Annotated[str | None, typer.Option(help="only of this user")] = None,
    output_: Output = Format.TABLE,
) -> None:
    """List who has which role where."""
    with output.errors():
        found = (grant for grant in Client().list("grants") if user in (None, grant["user"], grant["user_name"]))
        output.rows(found, GRANTS, output_)


@grants.command("create")
def create_grant(
    user: User,
    role: Annotated[str, typer.Argument(help="viewer, member, operator or administrator", show_default=False)],
    project: Annotated[str | None, typer.Option(help="where; everywhere if not given")] = None,
    output_: Output = Format.TABLE,
) -> None:
    """Give a user a role, in place of the one that they had there."""
    with output.errors():
        output.fields(Client().grant(user, role, project), GRANTS, output_)


@grants.command("delete")
def delete_grant(id: Annotated[str, typer.Argument(help="id of the grant", show_default=False)]) -> None:
    """Take a role from a user, at once."""
    with output.errors():
        Client().delete("grants", id)
        print(f"{id}: deleted")


def whoami(output_: Output = Format.TABLE) -> None:
    """Show who you are to the API, and what you may do."""
    with output.errors():
        output.fields(Client().me(), ME, output_)


def audit(
    actor: Annotated[str | None, typer.Option(help="only by this user")] = None,
    object: Annotated[str | None, typer.Option(help="only about this object, by id or name")] = None,
    project: Annotated[str | None, typer.Option(help="only in this project; needed without a role everywhere")] = None,
    outcome: Annotated[str | None, typer.Option(help="done, refused or failed")] = None,
    since: Annotated[str | None, typer.Option(help="only after this moment, like 2026-11-27T08:00:00Z")] = None,
    limit: Annotated[int, typer.Option(help="at most so many")] = 50,
    output_: Output = Format.TABLE,
) -> None:
    """Show who did what, from where, and what came of it, newest first; refusals, too."""
    given = {"actor": actor, "object": object, "project": project, "outcome": outcome, "since": since}
    with output.errors():
        filters = {key: value for key, value in given.items() if value is not None}
        output.rows(Client().list("audit", limit=limit, **filters), AUDIT, output_)
