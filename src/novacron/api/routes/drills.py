"""Routes for drills that an installation runs on itself: ``/api/v1/drills``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
from litestar import Response, Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import lists, replies
from novacron.api.read_model.paging import Page, Paging, Query
from novacron.api.read_model.watch_cache import Cache
from novacron.model import limits
from novacron.model.drill import KINDS, DrillName, DrillRun, DrillState, DrillVerdict, RecordDrill, is_overdue
from novacron.model.errors import InvalidInput
from novacron.store import drills
from novacron.store.database import Connection

FUTURE_S_MAX = 300
"""How far the clock of the machine that ran a drill may be ahead."""
LONG_LIVED = ("project", "user", "node", "drill")
"""Kinds whose oldest object says how old the installation is: any single one may be deleted."""
Wait = Annotated[int, QueryParameter(ge=0, le=limits.LONG_POLL_S_MAX)]
Chosen = Annotated[DrillName | None, QueryParameter(description="only runs of this drill")]


class DrillCalendar(msgspec.Struct):
    """All drills."""

    items: list[DrillState]


@get("/", summary="List runs of drills, newest first")
async def list_drills(
    request: ApiRequest, paging: NamedDependency[Paging], drill: Chosen = None
) -> Response[Page[DrillRun]]:
    return lists.answer(request, paging, Query("drill", lists.where({"drill": drill}), newest_first=True))


@get("/calendar", summary="List drills with their last runs, and whether each is overdue")
async def show_drill_calendar(request: ApiRequest) -> DrillCalendar:
    return DrillCalendar(list(states(services(request).cache, datetime.now(UTC))))


@get("/{id:str}", summary="Show a run of a drill")
async def show_drill(
    request: ApiRequest, id: FromPath[str], newer_than: FromQuery[int | None] = None, timeout_s: Wait = 30
) -> Response[DrillRun]:
    return await replies.single(request, "drill", id, newer_than, timeout_s)


@post("/", summary="Record the result of a drill's run", status_code=201)
async def record_drill(request: ApiRequest, data: JSONBody[RecordDrill]) -> Response[DrillRun]:
    run = _checked(data, datetime.now(UTC))

    async def work(connection: Connection) -> DrillRun:
        return await drills.record(connection, run, request.user.name)

    return await replies.write(request, work, status=201, location=lambda made: f"/api/v1/drills/{made.id}")


def _checked(run: RecordDrill, now: datetime) -> RecordDrill:
    """Return a run whose times are in UTC and can be. Raises InvalidInput."""
    times = dict[str, datetime]()
    for field in ("started_at", "ended_at"):
        at: datetime = getattr(run, field)
        if at.tzinfo is None:
            raise InvalidInput("has no time zone", field=field, hint="write it like 2026-11-27T08:00:00Z")
        try:
            times[field] = at.astimezone(UTC)
        except OverflowError:
            raise InvalidInput("is out of range", field=field, hint="write it like 2026-11-27T08:00:00Z") from None
    if times["ended_at"] < times["started_at"]:
        raise InvalidInput("is before started_at", field="ended_at", hint="a run must end after its start")
    if times["ended_at"] > now + timedelta(seconds=FUTURE_S_MAX):
        raise InvalidInput("is in the future", field="ended_at", hint="correct the clock of the machine that ran it")
    if (run.verdict is DrillVerdict.FAILED) is not bool(run.error):
        raise InvalidInput(
            f"does not fit the verdict {run.verdict}",
            field="error",
            hint="give a reason if it failed, and none if it passed",
        )
    return msgspec.structs.replace(run, **times)


def newest(bodies: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the last run of each drill."""
    return {body["drill"]: body for body in sorted(bodies, key=lambda body: str(body["ended_at"]))}


def states(cache: Cache, now: datetime) -> Iterator[DrillState]:
    """Yield each drill with how its last run went."""
    last = newest(entry.body for entry in cache.all("drill").values())
    begun = _begun(cache, now)
    for name, kind in KINDS.items():
        run = msgspec.convert(last[name], DrillRun) if name in last else None
        age = now - (begun if run is None else run.ended_at)
        yield DrillState(name, kind.what, kind.every, is_overdue(age), max(age.total_seconds(), 0.0), run)


def _begun(cache: Cache, now: datetime) -> datetime:
    """Return since when there is this installation, as far as is known: since what is oldest in it was made."""
    bodies = (entry.body for kind in LONG_LIVED for entry in cache.all(kind).values())
    return min((datetime.fromisoformat(body["created_at"]) for body in bodies), default=now)


router = Router(
    "/drills",
    route_handlers=[list_drills, show_drill_calendar, show_drill, record_drill],
    tags=["drills"],
    opt=authorization.in_fleet(),
)
