"""What fails in a page of the web UI: ``/api/v1/page-errors``. It is logged, and kept nowhere else."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import post
from litestar.params import JSONBody
from msgspec import Meta

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest
from novacron.api.edge import replies
from novacron.telemetry import logs

log = logs.get(__name__)

MESSAGE_LENGTH_MAX, STACK_LENGTH_MAX, PAGE_LENGTH_MAX = 1000, 8000, 300


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
    "/api/v1/page-errors", summary="Report an error of a page of the web UI, for the server's log",
    opt=authorization.SELF, tags=["diagnosis"],
)  # fmt: skip
async def report_page_error(request: ApiRequest, data: JSONBody[ScriptError]) -> ReportedPageError:
    async with replies.change(request):
        log.error("a page of the web UI failed", error=data.message, stack=data.stack, page=data.page,
                  user=request.user.name)  # fmt: skip
    return ReportedPageError(str(request.scope["state"]["request_id"]))
