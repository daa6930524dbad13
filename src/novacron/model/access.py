"""Rights, the roles that grant them, and the rights of a caller in each project. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec


class Right(StrEnum):
    """A permission that a route requires."""

    READ = "read"
    """See a project's objects. Everywhere: see all projects, and the fleet."""
    WRITE = "write"
    """Create, change and delete a project's objects."""
    OPERATE = "operate"
    """Migrate a project's VMs. Everywhere: run the fleet."""
    MANAGE = "manage"
    """Grant roles in a project. Everywhere: manage users, projects and quotas, and read the audit log."""
    CONSOLE = "console"
    """See what a project's guests show: console logs and screenshots. A token that may write may do this, too."""
    METRICS = "metrics"
    """Everywhere: read metrics, and nothing else. Who may read the fleet may do this, too."""
    JOIN = "join"
    """Everywhere: create join tokens, and accept hosts as nodes. A node is trusted with the VMs placed on it."""


class Role(StrEnum):
    """What a grant allows, each more than the one before."""

    VIEWER = "viewer"
    MEMBER = "member"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"


EVERY_RIGHT = frozenset(Right)
VIEW = frozenset({Right.READ, Right.METRICS})
WORK = VIEW | {Right.WRITE, Right.CONSOLE}
RIGHTS: Mapping[Role, frozenset[Right]] = {
    Role.VIEWER: VIEW,
    Role.MEMBER: WORK,
    Role.OPERATOR: WORK | {Right.OPERATE},
    Role.ADMINISTRATOR: EVERY_RIGHT,
}
IMPLIED = {Right.READ: Right.METRICS, Right.WRITE: Right.CONSOLE}
"""What a token's scope includes that has a name of its own."""
NONE: frozenset[Right] = frozenset()


class Access(msgspec.Struct, frozen=True):
    """The rights of a caller: ``everywhere``, and in single projects by name."""

    everywhere: frozenset[Right] = NONE
    projects: Mapping[str, frozenset[Right]] = {}

    def allows(self, right: Right, project: str | None) -> bool:
        """Say whether the caller has ``right`` in a project; None: on the fleet, which belongs to no project."""
        return right in self.everywhere or (project is not None and right in self.projects.get(project, NONE))

    @property
    def sees_all(self) -> bool:
        return Right.READ in self.everywhere

    def sees(self, project: str | None) -> bool:
        return self.allows(Right.READ, project)

    def covers(self, other: Access) -> bool:
        """Say whether these rights include all of another caller's."""
        return other.everywhere <= self.everywhere and all(
            rights <= self.everywhere | self.projects.get(project, NONE) for project, rights in other.projects.items()
        )

    def within(self, scopes: frozenset[Right] | None, project: str | None) -> Access:
        """Return these rights cut to a token's ``scopes`` (None: all rights) and its only ``project`` (None: all
        projects)."""
        cut = EVERY_RIGHT if scopes is None else scopes | {IMPLIED[scope] for scope in scopes if scope in IMPLIED}
        if project is None:
            return Access(self.everywhere & cut, {name: has & cut for name, has in self.projects.items()})
        return Access(NONE, {project: (self.everywhere | self.projects.get(project, NONE)) & cut})


def access(grants: Iterable[tuple[str | None, Role]]) -> Access:
    """Return the rights of several ``(project, role)`` together. The project None means everywhere."""
    everywhere, projects = NONE, dict[str, frozenset[Right]]()
    for project, role in grants:
        if project is None:
            everywhere |= RIGHTS[role]
        else:
            projects[project] = projects.get(project, NONE) | RIGHTS[role]
    return Access(everywhere, projects)
