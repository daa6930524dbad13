"""Routes for what is logged: of this server, all of its processes, and of each node's agent; no restart is needed."""

from __future__ import annotations

from enum import StrEnum

import msgspec
from litestar import get, put
from litestar.params import FromPath, JSONBody

from novacron.api.access import authorization
from novacron.api.access.context import ApiRequest, services
from novacron.api.edge import replies
from novacron.api.routes.metrics import known_node
from novacron.model.errors import Unavailable
from novacron.telemetry import logs
from novacron.wire.questions import SetLogLevel


class Level(StrEnum):
    """The least severe messages that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogLevel(msgspec.Struct, forbid_unknown_fields=True):
    """The least severe level that is logged."""

    level: Level


@get("/api/v1/log-level", summary="Show the log level of this server", opt=authorization.in_fleet(), tags=["diagnosis"])
async def show() -> LogLevel:
    return LogLevel(Level(logs.level()))


@put(
    "/api/v1/log-level", summary="Set the log level of this server until it restarts", opt=authorization.in_fleet(),
    tags=["diagnosis"],
)  # fmt: skip
async def change(request: ApiRequest, data: JSONBody[LogLevel]) -> LogLevel:
    file = services(request).log_level
    async with replies.change(request):
        try:
            new = file.with_suffix(".new")
            new.write_text(data.level)
            new.replace(file)  # other processes of the server read it at any moment
        except OSError as error:
            raise Unavailable(f"the log level can't be saved: {error}", hint="check the server's disk") from error
        logs.set_level(data.level)
    return data


@put(
    "/api/v1/nodes/{name:str}/log-level", summary="Set the log level of a node's agent until it restarts",
    opt=authorization.in_fleet(), tags=["nodes"],
)  # fmt: skip
async def change_node(request: ApiRequest, name: FromPath[str], data: JSONBody[LogLevel]) -> LogLevel:
    name = known_node(request, name)
    async with replies.change(request):
        await services(request).agents.ask(name, SetLogLevel(data.level))
    return data
