"""Users: people and service accounts, and the roles granted to them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from novacron.model.access import Role

UserName = Annotated[str, Meta(pattern="^[a-zA-Z0-9](?:[a-zA-Z0-9._@+-]{0,61}[a-zA-Z0-9])?\\Z", max_length=63)]
Password = Annotated[str, Meta(min_length=10, max_length=1024)]


class UserKind(StrEnum):
    """Who a user is."""

    PERSON = "person"
    SERVICE = "service"
    """A program. It has tokens and no password."""


class User(msgspec.Struct, frozen=True):
    """A user as stored and as the API shows it, without the password."""

    id: str
    name: str
    kind: UserKind
    project: str | None
    """For a service account: the project whose administrators manage it."""
    issuer: str | None
    """The identity provider (OpenID Connect); None: the user has a local password, or only tokens."""
    subject: str | None
    disabled: bool
    revision: int
    created_at: datetime
    second_factor_required: bool = False
    """A login with the password alone has no rights until the user has added a second factor."""
    default_project: str | None = None
    """The user's own setting: project of new objects, unless a request names another. None: their only project, or
    ``default``."""


class Invitation(msgspec.Struct, frozen=True):
    """A role that a user is offered in a project. They have it once they accept, before it expires."""

    id: str
    user_name: str
    """The name that the inviter entered."""
    project: str
    role: Role
    actor: str
    """Who invites."""
    created_at: datetime
    expires_at: datetime


class Grant(msgspec.Struct, frozen=True):
    """A role granted to a user, in one project or everywhere (None)."""

    id: str
    user: str
    user_name: str
    project: str | None
    role: Role
    revision: int
    created_at: datetime
