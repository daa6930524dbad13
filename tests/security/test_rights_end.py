"""What was begun with a right ends within a second after the right, whatever it is."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from lab.replicas import Served
from novacron.api.access.authentication import COOKIE
from tests.integration.conftest import Api

LATE_S = 30.0
"""The bound is a second; a busy machine gets more. Without the mend these never end."""
_numbers = itertools.count(1)


class Member:
    """A member of project ``prey``, and ways to take their rights away."""

    def __init__(self, api: Api) -> None:
        self.name = f"ends-{next(_numbers)}"
        self._api = api
        assert api("POST", "/api/v1/users", {"name": self.name}).status == 201
        grant = api("POST", "/api/v1/grants", {"user": self.name, "role": "member", "project": "prey"})
        self.grant = grant.body["id"]
        token = api("POST", "/api/v1/tokens", {"name": "t", "user": self.name}).body
        self.token, self.secret = token["id"], token["secret"]

    def disable(self) -> None:
        assert self._api("PATCH", f"/api/v1/users/{self.name}", {"disabled": True}).status == 200

    def delete(self) -> None:
        assert self._api("DELETE", f"/api/v1/users/{self.name}").status == 200

    def take_role(self) -> None:
        assert self._api("DELETE", f"/api/v1/grants/{self.grant}").status == 200

    def revoke(self) -> None:
        assert self._api("DELETE", f"/api/v1/tokens/{self.token}").status == 204


LOSSES: tuple[Callable[[Member], None], ...] = (Member.disable, Member.delete, Member.take_role, Member.revoke)


@pytest.fixture
def context(served: Served) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=served.client.config.ca)


@contextlib.asynccontextmanager
async def asked(served: Served, context: ssl.SSLContext, path: str, member: Member, *more: str) -> AsyncIterator[Any]:
    """Send a request and yield the reader of its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.replicas[0].port, ssl=context)
    lines = [f"GET {path} HTTP/1.1", "Host: nova", f"Authorization: Bearer {member.secret}", "Connection: close", *more]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    await writer.drain()
    try:
        yield reader
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("lose", LOSSES)
async def test_streams_end_with_the_right(
    served: Served, api: Api, context: ssl.SSLContext, lose: Callable[[Member], None]
) -> None:
    """A stream of events, a watch, and a request that waits for a change."""
    member = Member(api)
    url = served.client.config.url.replace("https://", "wss://") + "/api/v1/watch"
    headers = {"Authorization": f"Bearer {member.secret}"}
    later = api("GET", "/api/v1/networks/net-a").body["revision"] + 1_000_000  # whatever else happens to it
    waiting = f"/api/v1/networks/net-a?newer_than={later}&timeout_s=60"
    async with (
        asyncio.timeout(LATE_S),
        asked(served, context, "/api/v1/events", member, "Accept: text/event-stream") as events,
        asked(served, context, waiting, member) as waits,
        connect(url, ssl=context, additional_headers=headers) as watch,
    ):
        assert b"200" in await events.readline()
        await events.readuntil(b": revision")
        await watch.recv()
        await asyncio.to_thread(lose, member)
        assert (await events.read()).count(b"data:") < 10, "the stream ends"
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await watch.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4401
        answer = await waits.read()
        assert answer.startswith((b"HTTP/1.1 401", b"HTTP/1.1 403")) and b"net-a" not in answer


@pytest.mark.parametrize("lose", LOSSES)
async def test_an_unused_ticket_ends_with_the_right(
    served: Served, api: Api, context: ssl.SSLContext, lose: Callable[[Member], None]
) -> None:
    member = Member(api)
    ticket = api("POST", "/api/v1/vms/vm-a/actions/open-console", token=member.secret)
    assert ticket.status == 201, ticket.body
    lose(member)
    url = served.client.config.url.replace("https://", "wss://") + ticket.body["path"]
    async with asyncio.timeout(LATE_S), connect(url, ssl=context) as console:
        with pytest.raises(ConnectionClosed) as closed:
            await console.recv()
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 4409
    assert closed.value.rcvd.reason.startswith("ticket: "), "and not for its node, which is away"


async def test_a_page_of_another_origin_opens_no_watch(served: Served, api: Api, context: ssl.SSLContext) -> None:
    user = {"name": "watches", "password": "a long enough password"}
    assert api("POST", "/api/v1/users", user).status == 201
    login = api("POST", "/api/v1/login", {"user": "watches", "password": user["password"]}, token=None)
    cookie = login.headers["set-cookie"].partition(";")[0]
    assert cookie.startswith(COOKIE)
    url = served.client.config.url.replace("https://", "wss://") + "/api/v1/watch"
    own = served.client.config.url
    for origin in (None, "https://evil.example", "null", own.replace("https", "http"), own + ".evil.example"):
        headers = {"Cookie": cookie} | ({} if origin is None else {"Origin": origin})
        with pytest.raises(InvalidStatus):
            await connect(url, ssl=context, additional_headers=headers).__aenter__()
    async with connect(url, ssl=context, additional_headers={"Cookie": cookie, "Origin": own}) as watch:
        assert b"revision" in str(await watch.recv()).encode()
