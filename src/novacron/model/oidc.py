"""Login through an identity provider (OpenID Connect), and the roles that its groups give."""

from __future__ import annotations

import re

import msgspec

from novacron.model.access import Role

NAME_LENGTH_MAX = 63


class GroupRole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Members of ``group`` have a role in a project, or everywhere (null)."""

    group: str
    role: Role
    project: str | None = None


class Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The identity provider. ``client_secret_file`` holds the client secret that it issued."""

    issuer: str
    client_id: str
    client_secret_file: str
    scopes: tuple[str, ...] = ("openid", "profile", "email", "groups")
    name_claim: str = "preferred_username"
    groups_claim: str = "groups"
    roles: tuple[GroupRole, ...] = ()
    """The only roles that its users have, renewed at each login. Without any, administrators grant roles."""
    ca_file: str | None = None
    """Certificate authorities for the provider's certificate (PEM); by default those of this machine."""


def user_name(claims: dict[str, object], claim: str) -> str:
    """Return a valid user name from the provider's claims."""
    said = str(claims.get(claim) or claims.get("email") or claims.get("sub") or "")
    return re.sub(r"[^a-zA-Z0-9._@+-]+", "-", said).strip("-._@+")[:NAME_LENGTH_MAX] or "user"


def roles_of(provider: Provider, claims: dict[str, object]) -> dict[str | None, Role]:
    """Return a user's role in each project, from their groups: the most powerful one if several apply."""
    groups = claims.get(provider.groups_claim)
    has = {str(group) for group in groups} if isinstance(groups, list) else set()
    roles: dict[str | None, Role] = {}
    order = list(Role)
    for mapping in provider.roles:
        if mapping.group in has and (
            mapping.project not in roles or order.index(mapping.role) > order.index(roles[mapping.project])
        ):
            roles[mapping.project] = mapping.role
    return roles
