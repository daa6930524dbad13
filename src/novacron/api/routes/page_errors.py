"""What fails in a page of the web UI: ``/api/v1/page-errors``. It is logged; the audit log has that it was reported."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Annotated

import msgspec
from litestar import post
from litestar.params import JSONBody
from msgspec import Meta

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest
from novacron.api.edge import replies
from novacron.model.errors import TooManyRequests
from novacron.telemetry import logs
from novacron.terminal import safe

log = logs.get(__name__)

MESSAGE_LENGTH_MAX, STACK_LENGTH_MAX, PAGE_LENGTH_MAX = 1000, 8000, 300


PER_MINUTE_MAX, USERS_MAX = 10, 1000


class ReportLimit:
    """How many reports of one user are logged: whoever has a session could fill the log otherwise."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lately: OrderedDict[str, deque[float]] = OrderedDict()

    def take(self, user: str) -> None:
        """Count a report. Raises TooManyRequests."""
        now, lately = self._clock(), self._lately.pop(user, None) or deque[float]()
        while lately and lately[0] <= now - 60:
            lately.popleft()
        self._lately[user] = lately
        while len(self._lately) > USERS_MAX:
            self._lately.popitem(last=False)
        if len(lately) >= PER_MINUTE_MAX:
            raise TooManyRequests(f"more than {PER_MINUTE_MAX} reports a minute", hint="try again in a minute")
        lately.append(now)


_limit = ReportLimit()


class ScriptError(msgspec.Struct, forbid_unknown_fields=True):
    """An error of a script. Don't trust it: whoever has a session can report anything."""

    message: Annotated[str, Meta(max_length=MESSAGE_LENGTH_MAX)]
    stack: Annotated[str, Meta(max_length=STACK_LENGTH_MAX)] = ""
    """Where in the script it happened."""
    page: Annotated[str, Meta(max_length=PAGE_LENGTH_MAX)] = ""
    """Address of the page, without what is searched for in it."""


class ReportedPageError(msgspec.Struct):
    """Under which id the server's log has it."""

    id: str


@post(
    "/api/v1/page-errors", summary="Report an error in a page of the web UI, for the server's log",
    opt=authorization.SELF, tags=["diagnosis"],
)  # fmt: skip
async def report_page_error(request: ApiRequest, data: JSONBody[ScriptError]) -> ReportedPageError:
    _limit.take(request.user.user)
    async with replies.change(request):
        pass  # it is recorded that somebody reported something
    log.error("a page of the web UI failed", error=safe(data.message), script_stack=safe(data.stack),
              page=safe(data.page), user=request.user.name)  # fmt: skip
    return ReportedPageError(str(request.scope["state"]["request_id"]))
