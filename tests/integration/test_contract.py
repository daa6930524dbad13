"""What every client may count on: pages, orders, fields, waiting, revisions, batches, streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import asyncpg
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from lab.platform import Platform, until
from lab.replicas import serving
from novacron.client import ApiError
from novacron.client.typed import KINDS
from novacron.model.vm import Power, Vm
from tests.integration.conftest import Api
from tests.waiting import pause, pause_async

Object = dict[str, Any]
OFF = {"image": "tiny", "memory_mib": 64, "power": "stopped"}


@pytest.fixture
def clean_up_later(site: Platform) -> Iterator[Callable[[Any], Any]]:
    """Delete the VMs in the answers that pass through it after the test."""
    ids: list[str] = []

    def note(answer: Any) -> Any:
        body = answer.body
        ids.extend(item["vm"]["id"] for item in body.get("items", ()) if item.get("vm"))
        if "id" in body:
            ids.append(body["id"])
        return answer

    yield note
    for id in set(ids) & {vm["id"] for vm in site.client.list("vms")}:
        with contextlib.suppress(ApiError):  # it is going already
            site.client.delete("vms", id)
    until(lambda: not set(ids) & {vm["id"] for vm in site.client.list("vms")}, "the VMs are gone")


def batch(api: Api, names: list[str], **more: Any) -> Any:
    return api("POST", "/api/v1/vms/batch", {"items": [{"name": name, **OFF, **more} for name in names]})


def test_each_item_of_a_batch_succeeds_or_fails_by_itself(api: Api, clean_up_later: Callable[[Any], Any]) -> None:
    first = clean_up_later(batch(api, ["b-1", "b-2"]))
    assert first.status == 200 and (first.body["done"], first.body["failed"]) == (2, 0)
    assert all(item["status"] == 201 and item["vm"]["name"].startswith("b-") for item in first.body["items"])
    second = clean_up_later(api("POST", "/api/v1/vms/batch", {"items": [
        {"name": "b-3", **OFF}, {"name": "b-1", **OFF}, {"name": "b-4", **OFF, "image": "none"}]}))  # fmt: skip
    assert [item["status"] for item in second.body["items"]] == [201, 409, 400]
    assert second.body["items"][1]["problem"]["field"] == "name"
    assert api("GET", "/api/v1/vms/b-3").status == 200
    changed = api("PUT", "/api/v1/vms/batch", {"items": [
        {"vm": "b-1", "changes": {"start_order": 7}}, {"vm": "none", "changes": {"start_order": 7}}]})  # fmt: skip
    assert [item["status"] for item in changed.body["items"]] == [200, 404]
    assert api("GET", "/api/v1/vms/b-1").body["spec"]["start_order"] == 7
    gone = api("DELETE", "/api/v1/vms/batch", {"vms": ["b-1", "b-2", "b-3", "b-9"]})
    assert [item["status"] for item in gone.body["items"]] == [202, 202, 202, 404]
    assert api("POST", "/api/v1/vms/batch", {"items": []}).problem["field"] == "items"
    assert batch(api, [f"b-{n}" for n in range(101)]).status == 400


def test_a_repeated_batch_is_done_once(api: Api, clean_up_later: Callable[[Any], Any]) -> None:
    body = {"items": [{"name": "once-1", **OFF}]}
    first = clean_up_later(api("POST", "/api/v1/vms/batch", body, Idempotency_Key="batch-key"))
    again = api("POST", "/api/v1/vms/batch", body, Idempotency_Key="batch-key")
    assert again.body == first.body and again.headers["idempotency-replayed"] == "true"


def test_lists_have_orders_pages_fields_and_filters(api: Api, clean_up_later: Callable[[Any], Any]) -> None:
    names = [f"page-{n}" for n in range(7)]
    clean_up_later(batch(api, names))
    clean_up_later(batch(api, ["page-big"], vcpus=3))

    def pages(query: str) -> list[Object]:
        listed, cursor = [], ""
        for _ in range(20):
            answer = api("GET", f"/api/v1/vms?name=page-*&limit=3{query}{cursor}")
            assert answer.status == 200, answer.body
            listed += answer.body["items"]
            if answer.body["next"] is None:
                return listed
            cursor = f"&cursor={answer.body['next']}"
        raise AssertionError("no end")

    assert [vm["name"] for vm in pages("")] == [*names, "page-big"]
    assert [vm["name"] for vm in pages("&sort=-name")] == ["page-big", *names[::-1]]
    assert pages("&sort=-spec.vcpus")[0]["name"] == "page-big"
    newest = [vm["created_at"] for vm in pages("&sort=-created_at")]
    assert newest == sorted(newest, reverse=True) and len(newest) == 8
    assert pages("&fields=name,spec.vcpus")[0] == {"name": "page-0", "spec": {"vcpus": 1}}
    assert [vm["name"] for vm in api("GET", "/api/v1/vms?name=page-3").body["items"]] == ["page-3"]
    assert api("GET", "/api/v1/vms?name=page-*&image=none").body["items"] == []
    for query, field in (("sort=secret", "sort"), ("fields=no;such", "fields"), ("fields=nothing", "fields"),
                         ("cursor=xyz", "cursor"), ("limit=0", "limit"), ("limit=501", "limit")):  # fmt: skip
        refused = api("GET", f"/api/v1/vms?name=page-*&{query}")
        assert refused.status == 400 and refused.problem["field"] == field, query
    cursor = api("GET", "/api/v1/vms?name=page-*&limit=3").body["next"]
    assert api("GET", f"/api/v1/vms?sort=-name&cursor={cursor}").problem["field"] == "cursor", "of another order"


def test_a_request_can_wait_for_its_result(api: Api, clean_up_later: Callable[[Any], Any]) -> None:
    vm = clean_up_later(api("POST", "/api/v1/vms?wait=60", {"name": "waits", "image": "tiny", "memory_mib": 64})).body
    assert vm["status"]["state"] == "running"
    stopped = api("POST", "/api/v1/vms/waits/actions/stop?wait=30", {"timeout_s": 0})
    assert stopped.body["status"]["state"] == "stopped"
    assert api("GET", "/api/v1/vms/waits").headers["etag"] == stopped.headers["etag"]
    assert api("POST", "/api/v1/vms/waits/actions/start?wait=x").problem["field"] == "wait"
    assert api("DELETE", "/api/v1/vms/waits?wait=30").status == 202
    assert api("GET", "/api/v1/vms/waits").status == 404


def test_whoever_sends_a_write_again_can_read_it_afterwards(
    api: Api, site: Platform, clean_up_later: Callable[[Any], Any]
) -> None:
    """The first answer may be lost before this server can read what it did, as it is while a transaction is open."""
    is_open, closes = threading.Event(), threading.Event()

    async def hold_up_the_feed() -> None:
        connection = await asyncpg.connect(site.postgres.url)
        async with connection.transaction():
            await connection.execute("SELECT pg_current_xact_id()")
            is_open.set()
            await asyncio.to_thread(closes.wait, 60)
            await pause_async(0.3)
        await connection.close()

    def create() -> Any:
        return clean_up_later(api("POST", "/api/v1/vms", {"name": "again", **OFF}, Idempotency_Key="again"))

    with ThreadPoolExecutor(1) as aside:
        held = aside.submit(asyncio.run, hold_up_the_feed())
        try:
            assert is_open.wait(60)
            assert create().status == 201
            assert api("GET", "/api/v1/vms/again").status == 404, "it can't be read as long as that"
        finally:
            closes.set()
        again = create()
        assert (again.status, again.headers["idempotency-replayed"]) == (201, "true")
        assert api("GET", "/api/v1/vms/again").status == 200
        held.result(60)


def test_a_read_is_at_least_as_new_as_its_min_revision(api: Api, clean_up_later: Callable[[Any], Any]) -> None:
    vm = clean_up_later(api("POST", "/api/v1/vms", {"name": "fresh", **OFF})).body
    answer = api("GET", f"/api/v1/vms/fresh?min_revision={vm['revision']}")
    assert answer.status == 200 and answer.body["revision"] >= vm["revision"]
    listed = api("GET", f"/api/v1/vms?name=fresh&min_revision={vm['revision']}")
    assert listed.body["revision"] >= vm["revision"] and len(listed.body["items"]) == 1
    never = api("GET", f"/api/v1/vms/fresh?min_revision={vm['revision'] + 10**9}")
    assert never.status == 400 and never.problem["field"] == "min_revision", "there is none that late anywhere"
    assert api("GET", "/api/v1/vms?min_revision=new").problem["field"] == "min_revision"


def test_cached_answers_are_current(api: Api, clean_up_later: Callable[[Any], Any]) -> None:
    clean_up_later(api("POST", "/api/v1/vms?wait=30", {"name": "hot", **OFF}))
    path = "/api/v1/vms?name=hot"
    for _ in range(3):
        assert len(api("GET", path).body["items"]) == 1
    tagged = api("GET", path)
    assert api("GET", path, If_None_Match=tagged.headers["etag"]).status == 304
    changed = api("PATCH", "/api/v1/vms/hot", {"start_order": 9}).body
    assert api("GET", path, If_None_Match=tagged.headers["etag"]).status == 200
    assert api("GET", path).body["items"][0]["revision"] == changed["revision"]
    current = api("GET", f"/api/v1/vms/{changed['id']}")
    assert current.headers["etag"] == f'"{changed["revision"]}"'
    assert api("GET", f"/api/v1/vms/{changed['id']}", If_None_Match=current.headers["etag"]).status == 304
    nodes = "/api/v1/nodes"
    plain = api("GET", nodes).body["items"]
    for coding in ("zstd", "br", "gzip", "identity", "zstd;q=0, gzip"):
        for _ in range(3):
            packed = api("GET", nodes, Accept_Encoding=coding)
            assert packed.body["items"] == plain, coding
        expected = {"identity": None, "zstd;q=0, gzip": "gzip"}.get(coding, coding)
        assert packed.headers.get("content-encoding") == expected, coding
    for name in ("x-content-type-options", "strict-transport-security", "ratelimit", "vary"):
        assert name in packed.headers


async def test_a_websocket_delivers_changes_and_resumes_without_a_gap(
    site: Platform, api: Api, clean_up_later: Callable[[Any], Any]
) -> None:
    """In one thread: Python's TLS may lose what one thread sends while another one waits for something to receive."""
    config = site.client.config
    context = ssl.create_default_context(cadata=config.ca)
    url = config.url.replace("https://", "wss://") + "/api/v1/watch?kinds=vm"
    headers = {"Authorization": f"Bearer {config.token}"}
    async with connect(url, ssl=context, additional_headers=headers) as socket:
        began = json.loads(await asyncio.wait_for(socket.recv(), 10))["revision"]
        vm = clean_up_later(api("POST", "/api/v1/vms", {"name": "watched", **OFF})).body
        assert (await next_message_about(socket, vm["id"]))["object"]["name"] == "watched"
    api("PATCH", "/api/v1/vms/watched", {"start_order": 3})
    async with connect(f"{url}&after={began}", ssl=context, additional_headers=headers) as socket:
        seen = [(await next_message_about(socket, vm["id"]))["object"]["spec"]["start_order"] for _ in range(2)]
        assert seen[0] == 500
    async with connect(f"{url}&kindz=vm", ssl=context, additional_headers=headers) as socket:
        with pytest.raises(ConnectionClosedError, match="did you mean kinds"):
            await asyncio.wait_for(socket.recv(), 30)
    with pytest.raises(InvalidStatus, match="403"):
        await connect(url, ssl=context)


async def next_message_about(socket: ClientConnection, id: str) -> Object:
    """Return the next message about an object."""
    async with asyncio.timeout(10):
        while True:
            message: Object = json.loads(await socket.recv())
            if message.get("object", {}).get("id") == id:
                return message


def test_rate_limited_requests_get_a_time_to_wait() -> None:
    with serving("--strangers-per-s", "0.5", "--writes-per-s", "0.5") as served:
        api = Api(served.client)
        for token, method, served_as in (("nva_wrong", "GET", 401), (api.token, "POST", 400)):
            answers = (api(method, "/api/v1/projects", {}, token=token) for _ in range(20))
            refused = next(answer for answer in answers if answer.status != served_as)
            assert refused.status == 429
            assert refused.problem["code"] == "too-many-requests"
            assert api("GET", "/api/v1/projects").status == 200, "others are not concerned"
            pause(int(refused.headers["retry-after"]))
            assert api(method, "/api/v1/projects", {}, token=token).status == served_as, "it is served when told"
        assert api("GET", "/healthz", token=None).status == 200


@pytest.mark.parametrize(
    ("late_s", "more"), [(0.0, b""), (0.002, b""), (0.2, b""), (None, b""), (None, b"Expect: 100-continue\r\n")],
    ids=["at once", "late", "later", "never", "asks first"],
)  # fmt: skip
def test_a_refusal_costs_no_connection_unless_it_says_so(site: Platform, late_s: float | None, more: bytes) -> None:
    """A body that comes after the answer would."""
    config = site.client.config
    context = ssl.create_default_context(cadata=config.ca)
    with (
        socket.create_connection(("127.0.0.1", site.ports[0]), 10) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as client,
    ):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(b"POST /api/v1/projects HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n" + more + b"\r\n")
        if late_s is not None:
            pause(late_s)
            client.sendall(b"{}")
        refused = client.recv(65536).lower()
        assert refused.startswith(b"http/1.1 401")
        assert (b"connection: close" in refused) is (late_s is None)
        if late_s is not None:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000, b'{"a":' * 50_000, b'{"name":"' + b"x" * 900_000 + b'"}', b"\xff\xfe", b'{"name": NaN}',
        b"1e999999",
    ],
    ids=["lists", "objects", "long", "no text", "nan", "huge number"],
)  # fmt: skip
def test_a_hostile_body_is_refused(api: Api, body: bytes) -> None:
    refused = api("POST", "/api/v1/vms", raw=body)
    assert refused.status == 400 and refused.problem["code"] == "invalid-input"


@pytest.mark.parametrize(
    "path",
    ["/api/v1/vms/..%2f..%2fetc%2fpasswd", "/api/v1/vms/%00", "/api/v1/vms/" + "x" * 5000, "/api/v1/vms/%F0%9F%98%80",
     "/api/v1/vms/x%0d%0aSet-Cookie:a=b", "/api/v1/vms?project=%00",
     "/api/v1/vms?fields=" + "a," * 500],
)  # fmt: skip
def test_a_hostile_path_finds_nothing(api: Api, path: str) -> None:
    refused = api("GET", path)
    assert 400 <= refused.status < 500
    assert "set-cookie" not in refused.headers
    if refused.status in (400, 404):
        assert refused.problem["detail"]


def test_hostile_requests_are_logged_harmlessly(site: Platform, api: Api) -> None:
    for path in ("/api/v1/vms/%00", "/api/v1/vms/x?project=%00", "/api/v1/vms/%ed%a0%80"):
        assert api("DELETE", path, token="nva_wrong").status == 401
        assert 400 <= api("DELETE", path).status < 500

    def written() -> bool:
        return any("\\0" in record["path"] for record in site.client.list("audit", limit=50))

    until(written, "it is written down, and the server goes on")
    assert site.server.running


def test_unusual_headers_do_no_harm(api: Api) -> None:
    long = api("GET", "/api/v1/vms", X_Request_Id="y" * 200)
    assert long.headers["x-request-id"] != "y" * 200 if "x-request-id" in long.headers else True
    for name, value in (("If_None_Match", "x" * 3000), ("Accept_Encoding", ",;q=,,=" * 100), ("Accept", "\x7f"),
                        ("Cookie", "__Host-novacron-session=" + "z" * 3000), ("If_Match", '"' * 50)):  # fmt: skip
        assert api("GET", "/api/v1/vms", raw=None, token="", **{name: value}).status in (200, 400), name


def test_the_sdk_reads_each_kind_as_its_type(site: Platform, api: Api, clean_up_later: Callable[[Any], Any]) -> None:
    vm = clean_up_later(api("POST", "/api/v1/vms", {"name": "typed", **OFF})).body
    read = site.client.one(Vm, "typed")
    assert (read.id, read.spec.memory_mib, read.spec.power) == (vm["id"], 64, Power.STOPPED)
    assert read.created_at == datetime.fromisoformat(vm["created_at"])
    assert [value.name for value in site.client.every(Vm, name="typed")] == ["typed"]
    for type_, kind in KINDS.items():
        if kind == "snapshots":  # listed with their VM
            continue
        values: list[object] = list(site.client.every(type_, limit=50))
        assert all(isinstance(value, type_) for value in values)
        if kind in ("vms", "nodes", "images", "events", "projects", "users", "grants", "tokens"):
            assert values, kind
    with pytest.raises(TypeError, match=r"no objects of type int; it has those of: .*Drain, DrillRun, Event, "):
        site.client.one(int, "typed")
