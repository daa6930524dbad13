"""Records of API requests: the audit log and the API log."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec


class AuditOutcome(StrEnum):
    """The outcome of an audited request."""

    DONE = "done"
    REFUSED = "refused"
    """The caller is not allowed to do this, or not authenticated."""
    FAILED = "failed"


class AuditedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request to change something, or a refused request, with its outcome."""

    actor: str
    user_id: str | None
    token: str | None
    address: str
    method: str
    path: str
    action: str
    """The name of the route's handler, such as ``create_vm``."""
    object: str | None = None
    name: str | None = None
    project: str | None = None
    outcome: AuditOutcome
    status: int
    detail: str = ""
    request_id: str


class AuditRecord(AuditedRequest, frozen=True, kw_only=True):
    """A request as the audit log stores it."""

    id: int
    at: datetime


class ApiCall(msgspec.Struct, frozen=True):
    """An API call. All changes and errors are logged; reads are sampled."""

    at: datetime
    request_id: str
    method: str
    route: str
    status: int
    duration_ms: float
    user_name: str
    address: str
