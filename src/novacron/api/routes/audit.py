"""Routes for what was done by whom: ``/api/v1/audit``, and the API's own log, ``/api/v1/api-log``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, NamedTuple

import msgspec
from litestar import Router, get
from litestar.di import NamedDependency, Provide
from litestar.params import FromQuery, QueryParameter

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import text
from novacron.model import limits
from novacron.model.access import Right
from novacron.model.audit import ApiCall, AuditOutcome, AuditRecord
from novacron.model.errors import InvalidInput
from novacron.store import audit

Limit = Annotated[int, QueryParameter(ge=1, le=limits.PAGE_SIZE_MAX)]


class Records(msgspec.Struct):
    """A page of the audit log."""

    items: list[AuditRecord]
    next: str | None


class Calls(msgspec.Struct):
    """The latest calls of the API."""

    items: list[ApiCall]


def _moment(request: ApiRequest, field: str, value: datetime | None) -> datetime | None:
    """Return a time parameter in UTC, which is also its zone if it has none. Raises InvalidInput, also for a bare
    number and what is out of range in UTC."""
    if value is None:
        return None
    written, hint = str(request.query_params[field]), "write it like 2026-11-27T08:00:00Z"
    if "-" not in written.lstrip("-"):
        raise InvalidInput(f"{written!r} is not a time", field=field, hint=hint)
    try:
        return value.astimezone(UTC) if value.tzinfo is not None else value.replace(tzinfo=UTC)
    except OverflowError:
        raise InvalidInput(f"{written!r} is out of range", field=field, hint=hint) from None


class AuditSubject(NamedTuple):
    """Whose and which requests to search for; None: any."""

    actor: str | None
    object: str | None
    project: str | None
    action: str | None
    outcome: AuditOutcome | None
    address: str | None


class Period(NamedTuple):
    """From when, and before when; None: any time."""

    since: datetime | None
    until: datetime | None


async def subject_of(
    actor: FromQuery[str | None] = None,
    object: FromQuery[str | None] = None,
    project: Annotated[str | None, authorization.PROJECT] = None,
    action: FromQuery[str | None] = None,
    outcome: FromQuery[AuditOutcome | None] = None,
    address: FromQuery[str | None] = None,
) -> AuditSubject:
    return AuditSubject(actor, object, project, action, outcome, address)


async def period_of(
    request: ApiRequest, since: FromQuery[datetime | None] = None, until: FromQuery[datetime | None] = None
) -> Period:
    return Period(_moment(request, "since", since), _moment(request, "until", until))


@get("/audit", summary="Search the audit log, newest first: of a project, or of everything", opt=authorization.SELF,
     dependencies={"subject": Provide(subject_of), "period": Provide(period_of)})  # fmt: skip
async def search_audit(
    request: ApiRequest,
    subject: NamedDependency[AuditSubject],
    period: NamedDependency[Period],
    limit: Limit = limits.PAGE_SIZE_DEFAULT,
    cursor: FromQuery[str | None] = None,
) -> Records:
    authorization.check(request, subject.project, Right.MANAGE)
    hint = "send the `next` of the previous page unchanged"
    before = None if cursor is None else text.natural(cursor, "cursor", hint=hint)
    terms = audit.Filters(*subject, *period)
    async with services(request).database.connection() as connection:
        records = await audit.search(connection, terms, before, limit + 1)
    return Records(records[:limit], str(records[limit - 1].id) if len(records) > limit else None)


@get("/api-log", summary="List API calls, newest first", opt=authorization.in_fleet(Right.MANAGE))
async def show_calls(
    request: ApiRequest,
    limit: Limit = limits.PAGE_SIZE_DEFAULT,
    user: FromQuery[str | None] = None,
    route: FromQuery[str | None] = None,
    errors: FromQuery[bool] = False,
    since: FromQuery[datetime | None] = None,
) -> Calls:
    since = _moment(request, "since", since)
    async with services(request).database.connection() as connection:
        return Calls(await audit.calls(connection, user, route, errors, since, limit))


router = Router("/", route_handlers=[search_audit, show_calls], tags=["access"])
