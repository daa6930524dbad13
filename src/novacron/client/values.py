"""What methods of the SDK's objects return, beside the types of ``novacron.model``."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class ObjectChange(NamedTuple, Generic[T]):
    """A change of one object."""

    key: str
    """Its id, or its name or address where it has no id."""
    object: T | None
    """How it is now; None: it was deleted."""


class GuestResult(NamedTuple):
    """How a program in a guest ended, and what it printed, at most 1 MiB of each (``truncated``)."""

    exit_code: int | None
    """None: a signal ended it."""
    signal: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool
