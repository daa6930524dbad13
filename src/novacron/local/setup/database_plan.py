"""What is left to do for a member of the database's cluster: decided from what its host has. Nothing here acts."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any, NamedTuple

from novacron import settings_file
from novacron.local.setup.plan import (
    READABLE_BY_GROUP,
    USABLE,
    EnableUnit,
    PathFacts,
    RestartUnit,
    SetFile,
    SetFolder,
    SetupRefused,
    SetupStep,
    StopUnit,
    UnitFacts,
    is_as_wanted,
    restart_reason,
    unusable,
)
from novacron.local.setup.services import DATABASE_UNIT, POSTGRES, SERVER, SERVER_USER
from novacron.local.setup.settings_edit import CannotEdit, difference, edited
from novacron.model.token import same_secret

DATABASE = "database"
"""The server's setting with the URL of its database."""


class PrepareMember(NamedTuple):
    """Make this host ready to be a member, as ``novacron database cluster`` does it."""

    arguments: tuple[str, ...]
    join_file: bytes | None = None
    """What is given to it as standard input; secret."""

    def __str__(self) -> str:
        return f"as user {SERVER_USER}: novacron database cluster {' '.join(self.arguments)}"


class AwaitMember(NamedTuple):
    """Wait until the member does its work: one that joins copies all data first."""

    member: str
    limit_s: float

    def __str__(self) -> str:
        return f"wait until {self.member} works, for {self.limit_s:.0f} s at most"


DatabaseStep = SetupStep | PrepareMember | AwaitMember


class DatabaseRequest(NamedTuple):
    """What is wanted of a host. ``prepare``: how it is made ready; ``joins``: with a copy of another member's data."""

    member: str
    prepare: PrepareMember
    joins: bool
    wait_s: float


class DatabaseFacts(NamedTuple):
    """What a host has of it."""

    unit: UnitFacts
    server: UnitFacts
    folder: PathFacts | None
    settings: PathFacts | None
    """The server's settings file."""
    environment: str = ""
    """The variables of the server's unit, which win over its settings file."""
    is_prepared: bool = False
    works: bool = False
    url: str = ""
    """By which servers reach the database, once the member works."""


def database_steps(request: DatabaseRequest, facts: DatabaseFacts) -> list[DatabaseStep]:
    """Return what is left to do, in its order; empty: the host is as it is wanted. Raises SetupRefused.

    The server follows in a later round: the URL of its database is known once the member works.
    """
    if facts.unit.load_state != USABLE:
        raise SetupRefused(unusable(SERVER.name, DATABASE_UNIT, facts.unit.load_state))
    steps: list[DatabaseStep] = []
    if not is_as_wanted(POSTGRES, facts.folder):
        steps.append(SetFolder(POSTGRES))
    if not facts.is_prepared:
        steps += _of_server_before(request, facts)
        steps.append(request.prepare)
    if not facts.unit.is_enabled:
        steps.append(EnableUnit(DATABASE_UNIT))
    if not facts.unit.is_active:
        steps.append(RestartUnit(DATABASE_UNIT, "it does not run"))
    if not facts.works:
        return [*steps, AwaitMember(request.member, request.wait_s)]
    return [*steps, *_of_server_after(facts)]


def steps_to_follow(request: DatabaseRequest, facts: DatabaseFacts) -> list[str]:
    """Return what will be done once the member works, in words."""
    joins_now = request.joins and not facts.is_prepared
    if facts.works or joins_now or not _follows(facts):
        return []
    return [f"{SERVER.settings}: {DATABASE} = the URL of the cluster", f"systemctl restart {SERVER.unit}"]


def _of_server_before(request: DatabaseRequest, facts: DatabaseFacts) -> Iterator[DatabaseStep]:
    """Yield what is done with this host's server before its database is a member's, or is set aside."""
    server, other = facts.server, _database_setting(facts)
    if not request.joins:
        if other is not None and server.is_enabled:
            raise SetupRefused(
                f"{SERVER.settings} has {DATABASE} = {settings_file.without_password(settings_file.toml(other))}: the"
                " server of this host does not use the embedded database here, which would become the cluster's;"
                " remove that line to use the embedded one, or run this on the host of the server's database"
            )
        if server.is_active:
            yield StopUnit(SERVER.unit, "its database becomes the first member's")
    elif other is None and not _is_overridden(facts) and (server.is_active or server.is_enabled):
        yield StopUnit(SERVER.unit, "it uses its own database on this host", for_good=True)


def _of_server_after(facts: DatabaseFacts) -> Iterator[DatabaseStep]:
    """Yield what is left until this host's server uses the cluster."""
    if not _follows(facts):
        return
    settings = facts.settings
    before = "" if settings is None else settings.content.decode()
    changes: tuple[str, ...] = ()
    if _database_setting(facts) != facts.url:
        try:
            after = edited(before, {DATABASE: facts.url})
        except (CannotEdit, ValueError) as error:
            raise SetupRefused(f"{SERVER.settings}: {error}") from None
        changes = tuple(difference(str(SERVER.settings), before, after))
        yield SetFile(SERVER.settings, after.encode(), READABLE_BY_GROUP, SERVER.group, changes)
    why = restart_reason(facts.server, settings, bool(changes))
    if why:
        yield RestartUnit(SERVER.unit, why)


def _follows(facts: DatabaseFacts) -> bool:
    """Say whether the server of this host is to use the cluster: it runs here, and nobody gave it another database."""
    if not facts.server.is_enabled or _is_overridden(facts):
        return False
    other = _database_setting(facts)
    return other is None or not facts.url or _of_same_cluster(str(other), facts.url)


def _of_same_cluster(one: str, other: str) -> bool:
    passwords = [settings_file.PASSWORD.search(url) for url in (one, other)]
    return all(passwords) and same_secret(*(match[0] for match in passwords if match is not None))


def warnings(facts: DatabaseFacts) -> Iterator[str]:
    """Yield what an administrator has to do about the server of this host."""
    if facts.server.is_enabled and _is_overridden(facts):
        yield (
            f"/etc/default/{SERVER.name} sets the database of this host's server: once the member works, change"
            f" it to the URL in {POSTGRES.path}/database.url"
        )


def _is_overridden(facts: DatabaseFacts) -> bool:
    (setting,) = (each for each in settings_file.settings(SERVER.options) if each.name == DATABASE)
    set_there = {line.partition("=")[0].strip() for line in facts.environment.splitlines() if "=" in line}
    return not set_there.isdisjoint(setting.variables)


def _database_setting(facts: DatabaseFacts) -> Any:  # noqa: ANN401 - any value of TOML
    try:
        return None if facts.settings is None else tomllib.loads(facts.settings.content.decode()).get(DATABASE)
    except (ValueError, RecursionError) as error:
        raise SetupRefused(f"{SERVER.settings} can't be read as TOML: {error}") from None
