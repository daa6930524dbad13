"""What each request passes: the application with its edge, over a watch cache, without a database or a network."""

from __future__ import annotations

import asyncio
import contextlib
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple, cast

import msgspec
import pytest

from novacron.api.access.client_address import ProxySettings
from novacron.api.access.context import Services
from novacron.api.access.live_calls import LiveCalls
from novacron.api.access.recorder import CompletedCall
from novacron.api.app import create_app
from novacron.api.edge import admission, request_body
from novacron.api.edge.admission import Admission
from novacron.api.edge.rate_limits import Rates, RateSettings
from novacron.api.edge.request_body import BodyTimes, HeldBytes, Receive, RequestBody
from novacron.api.edge.slots import Full, SlotLimits, Slots
from novacron.api.read_model.watch_cache import Cache
from novacron.model.token import hash_secret
from novacron.store.feed import Batch, Change, FeedSnapshot

SECRET = "nova_secret"

TOKEN = {
    "id": "tok-a", "name": "t", "hash": hash_secret(SECRET).hex(), "revoked": False, "user": "user-a",
    "kind": "api", "scopes": None, "project": None, "expires_at": None,
}  # fmt: skip


class Recorder:
    """Notes calls instead of storing them."""

    def __init__(self) -> None:
        self.calls: list[CompletedCall] = []

    def called(self, call: CompletedCall) -> None:
        self.calls.append(call)

    def used(self, token: str, address: str) -> None: ...

    def refused(self, request: Any, status: int, detail: str) -> None: ...


class Answer(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def names(self) -> list[str]:
        return [item["name"] for item in msgspec.json.decode(self.body)["items"]]


class Server:
    """The API over a watch cache."""

    def __init__(self, proxies: ProxySettings | None = None, **rates: float) -> None:
        self.lag_s = 0.0
        self.cache, self.recorder, self._revision = Cache(30, lambda: self.lag_s), Recorder(), 0
        self.live = LiveCalls(self.cache.callers)
        parts = {"cache": self.cache, "recorder": self.recorder, "live": self.live}
        authority = types.SimpleNamespace(trust_mark="0123456789abcdef")
        services = cast(Services, types.SimpleNamespace(**parts, authority=authority))
        self.admission = Admission(create_app(services), services, Rates(RateSettings(**rates)), proxies)

    async def start(self) -> None:
        await self.cache.reset(FeedSnapshot(Batch(0, []), [], 0))
        await self.change("user", "user-a", {"id": "user-a", "name": "ann", "disabled": False, "project": None})
        await self.change("token", "tok-a", TOKEN)
        await self.change("grant", "g", {"id": "g", "user": "user-a", "project": None, "role": "member"})

    async def change(self, kind: str, key: str, body: dict[str, Any] | None) -> None:
        self._revision += 1
        project = None if body is None else body.get("project")
        await self.cache.apply(Batch(self._revision, [Change(self._revision, kind, key, body, project)]))

    async def vm(self, id: str, name: str, *, node: str = "a", state: str = "running", project: str = "p") -> None:
        body = {
            "id": id, "name": name, "project": project, "node": node, "status": {"state": state},
            "spec": {"image": "tiny"}, "created_at": "2026-01-01", "revision": self._revision,
        }  # fmt: skip
        await self.change("vm", id, body)

    async def get(
        self, path: str, *, secret: str = SECRET, address: str = "192.0.2.1", method: str = "GET",
        body: Receive | None = None, **headers: str,
    ) -> Answer:  # fmt: skip
        """Send a request; ``body`` is where the server receives it from."""
        path, _, query = path.partition("?")
        sent = {"authorization": f"Bearer {secret}", **{name.replace("_", "-"): text for name, text in headers.items()}}
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
            "query_string": query.encode(), "root_path": "", "scheme": "https", "server": ("nova", 443),
            "client": (address, 1), "headers": [(name.encode(), text.encode()) for name, text in sent.items()],
            "asgi": {"version": "3.0"}, "extensions": {},
        }  # fmt: skip
        messages: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        await self.admission(scope, body or receive, send)
        content = b"".join(message.get("body", b"") for message in messages[1:])
        return Answer(messages[0]["status"], dict(messages[0]["headers"]), content)


@pytest.fixture
async def server() -> Server:
    server = Server(strangers=1000)
    await server.start()
    return server


async def test_lists_are_filtered_by_name_node_state_and_project(server: Server) -> None:
    await server.vm("vm-1", "web-1")
    await server.vm("vm-2", "web-2", node="b")
    await server.vm("vm-3", "web-3", state="stopped", project="q")
    await server.vm("vm-4", "db")
    await server.change("project", "q", {"id": "q", "name": "q"})
    for query, names in (
        ("", ["db", "web-1", "web-2", "web-3"]), ("name=web*", ["web-1", "web-2", "web-3"]), ("name=web-1", ["web-1"]),
        ("name=web", []), ("name=*", ["db", "web-1", "web-2", "web-3"]), ("name=web-1%20vm*", []),
        ("node=b", ["web-2"]),
        ("state=stopped", ["web-3"]), ("project=q", ["web-3"]), ("node=a&state=running&name=w*", ["web-1"]),
        ("image=none", []), ("limit=2", ["db", "web-1"]), ("sort=-name&limit=1", ["web-3"]),
    ):  # fmt: skip
        for turn in ("from its route", "from the cache"):
            answer = await server.get(f"/api/v1/vms?{query}")
            assert answer.status == 200 and answer.names == names, (query, turn, answer.body)


async def test_a_list_comes_from_the_cache_until_it_changes(server: Server) -> None:
    await server.vm("vm-1", "web-1")

    async def came_from_its_route() -> bool:
        return b"x-request-id" in (await server.get("/api/v1/vms?name=web*")).headers

    assert await came_from_its_route()
    assert not await came_from_its_route()
    await server.vm("vm-2", "db")
    assert not await came_from_its_route(), "a change of another VM does not concern it"
    await server.vm("vm-3", "web-3")
    assert await came_from_its_route()
    await server.change("vm", "vm-1", None)
    assert (await server.get("/api/v1/vms?name=web*")).names == ["web-3"]


async def test_while_the_database_is_away_reads_are_answered_from_memory_with_their_age(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.vm("vm-a", "web")
    (before,) = [await server.get("/api/v1/vms")]
    assert before.status == 200 and b"age" not in before.headers
    now, server.lag_s = time.monotonic(), 12.7
    server.cache.lost()
    for path in ("/api/v1/vms", "/api/v1/vms/vm-a", "/api/v1/nodes"):
        answer = await server.get(path)
        assert (answer.status, answer.headers[b"age"]) == (200, b"12"), path
    assert (await server.get("/api/v1/events", accept="text/event-stream")).status == 503
    assert (await server.get("/api/v1/vms/vm-a", method="DELETE")).status == 503
    assert (await server.get("/api/v1/vms", secret="nova_wrong")).status == 401

    server.lag_s = 31.0
    monkeypatch.setattr(time, "monotonic", lambda: now + 18.3)
    for path in ("/api/v1/vms", "/api/v1/vms/vm-a", "/api/v1/nodes"):
        assert (await server.get(path)).status == 503, path

    server.lag_s = 0.0
    await server.start()
    await server.vm("vm-a", "web")
    assert b"age" not in (await server.get("/api/v1/vms")).headers


async def test_who_waited_while_the_database_went_away_is_told_the_age_then(server: Server) -> None:
    await server.vm("vm-a", "web")
    waits = [asyncio.create_task(server.get("/api/v1/vms/vm-a?newer_than=99&timeout_s=1")) for _ in range(2)]
    await asyncio.sleep(0)
    server.lag_s = 5.0
    server.cache.lost()
    for wait in waits:
        answer = await wait
        assert (answer.status, answer.headers.get(b"age")) == (200, b"5"), answer.body
    server.lag_s = 0.0
    await server.start()
    await server.vm("vm-a", "web")
    wait = asyncio.create_task(server.get("/api/v1/vms/vm-a?newer_than=99&timeout_s=1"))
    await asyncio.sleep(0)
    server.lag_s = 31.0
    server.cache.lost()
    assert (await wait).status == 503


async def test_a_server_that_never_had_everything_answers_nothing() -> None:
    server = Server()
    server.cache.lost()
    assert not server.cache.answers()
    assert (await server.get("/api/v1/vms")).status == 503


async def test_unknown_callers_are_refused(server: Server) -> None:
    answer = await server.get("/api/v1/vms", secret="wrong")
    assert answer.status == 401 and answer.headers[b"content-type"].startswith(b"application/problem+json")
    assert server.recorder.calls[-1].status == 401 and server.recorder.calls[-1].user == "-"


async def test_requests_beyond_the_rate_are_rejected_with_the_time_to_wait() -> None:
    server = Server(reads=1)
    await server.start()
    answers = [await server.get("/api/v1/vms") for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 429, 429]
    problem = msgspec.json.decode(answers[-1].body)
    assert (problem["code"], problem["status"]) == ("too-many-requests", 429)
    assert int(answers[-1].headers[b"retry-after"]) >= 1 and b"ratelimit" in answers[-1].headers
    assert server.recorder.calls[-1].status == 429 and server.recorder.calls[-1].user == "ann"


async def test_an_overloaded_server_rejects_all_but_essential_requests(
    server: Server,
) -> None:
    server.admission.work = Slots(SlotLimits(0, 1, 1))
    answer = await server.get("/api/v1/vms?sort=name")
    assert answer.status == 503 and msgspec.json.decode(answer.body)["code"] == "overloaded"
    assert answer.headers[b"retry-after"] == b"2"
    assert (await server.get("/healthz")).status == 200


async def test_a_request_beyond_the_time_limit_gets_an_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(admission, "REQUEST_S_MAX", 0.01)
    monkeypatch.setattr(server.admission, "_app", never)
    answer = await server.get("/api/v1/nodes")
    assert answer.status == 503 and msgspec.json.decode(answer.body)["code"] == "timeout"
    assert server.admission.in_progress == 0


async def test_each_response_has_the_request_s_id_and_security_headers(server: Server) -> None:
    answer = await server.get("/api/v1/vms?limit=7", x_request_id="mine-1")
    assert answer.headers[b"x-request-id"] == b"mine-1"
    assert answer.headers[b"x-content-type-options"] == b"nosniff"
    assert (await server.get("/api/v1/vms?limit=8", x_request_id="no good")).headers[b"x-request-id"] != b"no good"
    server.admission.leaving = True
    assert (await server.get("/readyz")).status == 503


async def never() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


@contextlib.asynccontextmanager
async def in_the_background(
    count: int, call: Callable[[int], Awaitable[Any]]
) -> AsyncIterator[list[asyncio.Task[Any]]]:
    tasks = [asyncio.ensure_future(call(number)) for number in range(count)]
    await asyncio.sleep(0)
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def add_caller(server: Server, name: str) -> str:
    secret, token = f"secret-{name}", {"id": f"tok-{name}", "hash": hash_secret(f"secret-{name}").hex()}
    await server.change("user", name, {"id": name, "name": name, "disabled": False, "project": None})
    await server.change("token", token["id"], {**TOKEN, **token, "user": name})
    await server.change("grant", f"g-{name}", {"id": f"g-{name}", "user": name, "project": "p", "role": "viewer"})
    return secret


async def test_requests_whose_body_is_not_there_hold_up_nobody(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of strangers, and of a viewer: others are served, and so many of one caller are turned away."""
    monkeypatch.setattr(admission, "OF_STRANGERS", BodyTimes(60, 60))
    viewer = await add_caller(server, "viewer")

    def post(number: int) -> Awaitable[Answer]:
        stranger = number % 2
        return server.get("/api/v1/vms", method="POST", secret="wrong" if stranger else viewer, body=never,
                          content_length="10", address="192.0.2.9")  # fmt: skip

    async with in_the_background(1000, post) as posts:
        assert server.admission.in_progress == 0
        refused = [post.result().status for post in posts if post.done()]
        limits = server.admission.receiving.limits
        assert refused == [429] * (1000 - limits.per_address - limits.per_user)
        assert (await server.get("/api/v1/vms?sort=name")).status == 200
        assert (await server.get("/api/v1/vms", secret="wrong")).status == 401, "another stranger"
    assert server.admission.receiving.taken == 0


async def test_streams_and_waiting_requests_are_counted_apart_from_work(server: Server) -> None:
    viewer = await add_caller(server, "viewer")
    await server.vm("vm-1", "web-1")
    waiting = "/api/v1/vms/vm-1?newer_than=99&timeout_s=60"

    def wait(number: int) -> Awaitable[Answer]:
        stream = {"accept": "text/event-stream"} if number % 2 else {}
        return server.get("/api/v1/events" if stream else waiting, secret=viewer, body=never_after_start(), **stream)

    async with in_the_background(500, wait) as waits:
        for _ in range(20):
            await asyncio.sleep(0)
        assert server.admission.in_progress == 0
        assert server.admission.waiting.taken == server.admission.waiting.limits.per_user
        assert [wait.result().status for wait in waits if wait.done()] == [429] * 300
        assert (await server.get("/api/v1/vms?sort=name", secret=viewer)).status == 200
    assert server.admission.waiting.taken == 0


def never_after_start() -> Receive:
    """Return what gives an empty body, and then nothing more: the client listens."""
    messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else await never()

    return receive


async def test_a_body_that_comes_too_slowly_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "OF_CALLERS", BodyTimes(60, 0.01))
    answer = await server.get("/api/v1/vms", method="POST", body=never, content_length="10")
    assert answer.status == 408 and msgspec.json.decode(answer.body)["code"] == "request-timeout"
    assert answer.headers[b"connection"] == b"close"
    monkeypatch.setattr(admission, "OF_STRANGERS", BodyTimes(60, 0.01))
    answer = await server.get("/api/v1/vms", method="POST", secret="wrong", body=never, content_length="10")
    assert answer.status == 401 and answer.headers[b"connection"] == b"close"


async def test_a_body_is_awaited_only_as_long_as_its_caller_has_the_right(server: Server) -> None:
    secret = await add_caller(server, "leaves")

    def put(_: int) -> Awaitable[Answer]:
        return server.get("/api/v1/vms", method="POST", secret=secret, body=never, content_length="10")

    async with in_the_background(1, put) as calls:
        assert len(server.live) == 1
        server.live.check(time.time(), asyncio.get_running_loop().time())
        await asyncio.sleep(0)
        assert not calls[0].done()
        await server.change("token", "tok-leaves", None)
        server.live.check(time.time(), asyncio.get_running_loop().time())
        answer: Answer = await asyncio.wait_for(calls[0], 5)
    assert answer.status == 401 and answer.headers[b"connection"] == b"close"
    assert len(server.live) == 0 and server.admission.receiving.taken == 0


async def test_a_caller_who_becomes_known_while_the_body_is_awaited_is_asked_to_try_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that has just begun: no route reads a body whose receiving was cut off."""
    monkeypatch.setattr(admission, "OF_STRANGERS", BodyTimes(60, 0.01))
    received = False

    async def receive() -> dict[str, Any]:
        nonlocal received
        assert not received, "read again after it was cut off"
        received = True
        await add_caller(server, "viewer")
        return await never()

    answer = await server.get("/api/v1/vms", method="POST", secret="secret-viewer", body=receive, content_length="10")
    assert answer.status == 503 and b"retry-after" in answer.headers
    assert (await server.get("/api/v1/vms", secret="secret-viewer")).status == 200


async def test_a_client_that_is_gone_before_its_body_ended_is_no_defect(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    messages: list[dict[str, Any]] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": b'{"na', "more_body": True},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop()

    # Without a length nothing is held: the route itself receives.
    answer = await server.get("/api/v1/vms", method="POST", body=receive)
    assert answer.status == 400 and msgspec.json.decode(answer.body)["code"] == "incomplete-body"
    assert "Traceback" not in "".join(capsys.readouterr())


async def test_what_is_held_of_bodies_has_a_limit_and_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "HELD_BYTES_MAX", 100)
    held = HeldBytes(150)

    async def piece() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 60, "more_body": True}

    async def nothing(message: dict[str, Any]) -> None: ...

    times = BodyTimes(60, 60)
    monkeypatch.setattr(request_body, "DRAINED_BYTES_MAX", 100)
    endless = RequestBody(piece, nothing, {b"transfer-encoding": b"chunked"}, held)
    await endless.hold(times)
    assert held.bytes == 120, "what is too large is not held"
    with pytest.raises(Full):
        await RequestBody(piece, nothing, {}, held).hold(times)
    endless.forget()
    assert held.bytes == 0


async def test_strangers_behind_a_trusted_proxy_have_a_limit_each_and_nobody_else_is_believed() -> None:
    server = Server(ProxySettings(("10.0.0.0/24",)), strangers=5)
    await server.start()

    async def status(address: str, forwarded: str) -> int:
        return (await server.get("/api/v1/vms", secret="wrong", address=address, x_forwarded_for=forwarded)).status

    async def tries(address: str, forwarded: str) -> list[int]:
        return [await status(address, forwarded) for _ in range(12)]

    assert 429 in await tries("10.0.0.1", "203.0.113.7")
    assert server.recorder.calls[-1].address == "203.0.113.7", "logs have the client's address"
    assert (await tries("10.0.0.1", "203.0.113.8"))[0] == 401, "another client is not held up"
    assert 429 in await tries("198.51.100.1", "203.0.113.9")
    assert await status("198.51.100.1", "203.0.113.10") == 429, "a client that invents addresses gets no new limit"
    assert await status("10.0.0.1", "6.6.6.6, 203.0.113.7") == 429, "nor does one behind a proxy"


def test_cookies_in_headers_of_their_own_are_joined() -> None:
    """Browsers send them so over HTTP/2; the session's need not be the first."""
    host, device, session = (b"host", b"h"), (b"cookie", b"__Host-novacron-device=a"), (b"cookie", b"b=c")
    assert admission.with_one_cookie([device, host, session]) == [host, (b"cookie", b"__Host-novacron-device=a; b=c")]
    assert admission.with_one_cookie([host, session]) == [host, session]
    assert admission.with_one_cookie([host]) == [host]
