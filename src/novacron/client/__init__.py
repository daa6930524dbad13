"""The Python SDK: ``Client`` for threads, ``AsyncClient`` for asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING

from novacron.client.api import Client
from novacron.client.config import Config, load_config
from novacron.client.errors import (
    ApiError,
    ConflictError,
    ForbiddenError,
    IdempotencyMismatchError,
    IllegalStateError,
    InvalidInputError,
    NoCapacityError,
    NotFoundError,
    QuotaExceededError,
    RevisionGoneError,
    ServerFailedError,
    StaleRevisionError,
    TooLargeError,
    TooManyRequestsError,
    UnauthenticatedError,
    UnavailableError,
    UnexpectedAnswer,
    Unreachable,
)

if TYPE_CHECKING:
    from novacron.client.aio import AsyncClient

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "Config",
    "ConflictError",
    "ForbiddenError",
    "IdempotencyMismatchError",
    "IllegalStateError",
    "InvalidInputError",
    "NoCapacityError",
    "NotFoundError",
    "QuotaExceededError",
    "RevisionGoneError",
    "ServerFailedError",
    "StaleRevisionError",
    "TooLargeError",
    "TooManyRequestsError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnexpectedAnswer",
    "Unreachable",
    "load_config",
]


def __getattr__(name: str) -> type[AsyncClient]:
    """Load what the command line does not need only when somebody asks for it."""
    if name == "AsyncClient":
        from novacron.client.aio import AsyncClient

        return AsyncClient
    raise AttributeError(name)
