"""Who may do what, and where: rights, the roles that stand for them, and what a caller has of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec


class Right(StrEnum):
    """What a route needs."""

    READ = "read"
    """See a project's objects; everywhere: those of all projects, and the fleet."""
    WRITE = "write"
    """Create, change and delete a project's objects."""
    OPERATE = "operate"
    """Move a project's VMs; everywhere: run the fleet."""
    MANAGE = "manage"
    """Say who may do what in a project; everywhere: users, projects and quotas, and see what they did."""


class Role(StrEnum):
    VIEWER = "viewer"
    MEMBER = "member"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"


EVERY_RIGHT = frozenset(Right)
RIGHTS: Mapping[Role, frozenset[Right]] = {
    Role.VIEWER: frozenset({Right.READ}),
    Role.MEMBER: frozenset({Right.READ, Right.WRITE}),
    Role.OPERATOR: frozenset({Right.READ, Right.WRITE, Right.OPERATE}),
    Role.ADMINISTRATOR: EVERY_RIGHT,
}
NONE: frozenset[Right] = frozenset()


class Access(msgspec.Struct, frozen=True):
    """What a caller may do: ``everywhere``, and in single projects by name."""

    everywhere: frozenset[Right] = NONE
    projects: Mapping[str, frozenset[Right]] = {}

    def allows(self, right: Right, project: str | None) -> bool:
        """Say whether ``right`` is there in a project; None: in the fleet, which belongs to none."""
        return right in self.everywhere or (project is not None and right in self.projects.get(project, NONE))

    @property
    def sees_all(self) -> bool:
        return Right.READ in self.everywhere

    def sees(self, project: str | None) -> bool:
        return self.allows(Right.READ, project)

    def within(self, scopes: frozenset[Right] | None, project: str | None) -> Access:
        """Return what is left of it for a token with ``scopes`` (None: all), that is good in one project only (None:
        in all)."""
        cut = EVERY_RIGHT if scopes is None else scopes
        if project is None:
            return Access(self.everywhere & cut, {name: has & cut for name, has in self.projects.items()})
        return Access(NONE, {project: (self.everywhere | self.projects.get(project, NONE)) & cut})


def access(grants: Iterable[tuple[str | None, Role]]) -> Access:
    """Return what ``(project, role)`` give together; a project of None is everywhere."""
    everywhere, projects = NONE, dict[str, frozenset[Right]]()
    for project, role in grants:
        if project is None:
            everywhere |= RIGHTS[role]
        else:
            projects[project] = projects.get(project, NONE) | RIGHTS[role]
    return Access(everywhere, projects)
