"""What is written down of what callers ask: the audit log, and the API's own log."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec


class AuditOutcome(StrEnum):
    DONE = "done"
    REFUSED = "refused"
    """The caller may not, or is not known."""
    FAILED = "failed"


class AuditedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A change that was asked for, or a refusal, and what came of it."""

    actor: str
    user_id: str | None
    token: str | None
    address: str
    method: str
    path: str
    action: str
    """What the route does, such as ``create_vm``."""
    object: str | None = None
    name: str | None = None
    project: str | None = None
    outcome: AuditOutcome
    status: int
    detail: str = ""
    request_id: str


class AuditRecord(AuditedRequest, frozen=True, kw_only=True):
    """A request as it was written down."""

    id: int
    at: datetime


class ApiCall(msgspec.Struct, frozen=True):
    """A call of the API: all changes and all errors; of reads, as many as fit (``telemetry/calls.py``)."""

    at: datetime
    request_id: str
    method: str
    route: str
    status: int
    duration_ms: float
    user_name: str
    address: str
