"""Who vouches for people from outside (OpenID Connect), and which of their groups mean which roles here."""

from __future__ import annotations

import re

import msgspec

from novacron.model.access import Role

NAME_LENGTH_MAX = 63


class GroupRole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Members of ``group`` have a role, in a project or (null) everywhere."""

    group: str
    role: Role
    project: str | None = None


class Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who vouches. ``client_secret_file`` holds the secret that the provider gave this client."""

    issuer: str
    client_id: str
    client_secret_file: str
    scopes: tuple[str, ...] = ("openid", "profile", "email", "groups")
    name_claim: str = "preferred_username"
    groups_claim: str = "groups"
    roles: tuple[GroupRole, ...] = ()
    """The only roles of those for whom it vouches, renewed at each login; without any, administrators give them."""
    ca_file: str | None = None
    """Whom to trust when talking to it (PEM); by default whom this machine trusts."""


def user_name(claims: dict[str, object], claim: str) -> str:
    """Return what somebody is called here, by what the provider says of them."""
    said = str(claims.get(claim) or claims.get("email") or claims.get("sub") or "")
    return re.sub(r"[^a-zA-Z0-9._@+-]+", "-", said).strip("-._@+")[:NAME_LENGTH_MAX] or "user"


def roles_of(provider: Provider, claims: dict[str, object]) -> dict[str | None, Role]:
    """Return the roles that somebody's groups mean, by project; of several in one project, the one that allows most."""
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
