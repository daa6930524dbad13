"""The SDK's objects with typed methods: what they call is there; they wait, follow and fail as they say."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from novacron.api.edge import problems, refusals
from novacron.api.read_model.watch_cache import PUBLIC
from novacron.client import Client, Config, errors, typed
from novacron.client.protocol import HttpReply, decode
from novacron.client.sync import handles, resources, vm_handles
from novacron.client.sync.collections import Collections
from novacron.client.values import ObjectChange
from novacron.model import errors as model_errors
from novacron.model.vm import Vm, VmState
from novacron.store import feed
from tests.unit.test_client import FakeTransport

ROOT = Path(__file__).parents[2]
DOCUMENT = json.loads((ROOT / "docs/reference/openapi.json").read_text())
OFFLINE = Client(Config("https://api.invalid", "token", ""))
"""Copied for each test: what TLS needs takes a tenth of a second to load."""
VM: dict[str, Any] = {
    "id": "vm-1", "name": "web", "spec": {"image": "tiny"}, "status": {"state": "running"}, "node": "host-a",
    "epoch": 1, "migration": None, "deleting": False, "snapshot": None, "clone_of": None, "revision": 7,
    "created_at": "2026-01-01T00:00:00Z",
}  # fmt: skip


def client(*answers: object, streams: tuple[bytes | None, ...] = ()) -> tuple[Client, FakeTransport]:
    """A client of a server that gives these answers, in order."""
    transport = FakeTransport(*(HttpReply(200, json.dumps(answer).encode()) for answer in answers), streams=streams)
    return with_transport(transport), transport


def with_transport(transport: FakeTransport) -> Client:
    blocking = copy.copy(OFFLINE)
    blocking._transport = transport
    return blocking


def vm(**changes: object) -> dict[str, Any]:
    return {**VM, **changes}


def test_a_vm_is_created_started_and_changed_as_an_object() -> None:
    stopped = vm(status={"state": "stopped"}, revision=8)
    sdk, transport = client(vm(), stopped, vm(revision=9), vm(revision=10))
    web = sdk.vms.create(name="web", image="tiny", power="running", idempotency_key="k-1")
    assert (web.name, web.state, web.spec.memory_mib, web.node) == ("web", VmState.RUNNING, 256, "host-a")
    assert web.stop(timeout_s=5).state is VmState.STOPPED and web.object.revision == 8
    web.start()
    web.configure(vcpus=2, disk_iops=None, if_unchanged=True)
    sent = [(method, path, None if body is None else json.loads(body)) for method, path, _, body in transport.sent]
    assert sent == [
        ("POST", "/api/v1/vms", {"name": "web", "image": "tiny", "power": "running"}),
        ("POST", "/api/v1/vms/vm-1/actions/stop", {"timeout_s": 5}),
        ("POST", "/api/v1/vms/vm-1/actions/start", None),
        ("PATCH", "/api/v1/vms/vm-1", {"vcpus": 2, "disk_iops": None}),
    ]
    assert transport.sent[0][2]["Idempotency-Key"] == "k-1"
    assert transport.sent[3][2]["If-Match"] == '"9"'


def test_an_object_is_waited_for_on_the_server() -> None:
    sdk, transport = client(vm(), vm(status={"state": "starting"}, revision=8), vm(revision=9))
    web = sdk.vms.get("web").wait_for(VmState.RUNNING)
    assert web.object.revision == 9
    assert [parse_qs(urlsplit(path).query).get("newer_than") for _, path, _, _ in transport.sent] == [
        None, ["0"], ["8"],
    ]  # fmt: skip


def test_the_changes_of_one_object_end_when_it_is_gone() -> None:
    sdk, transport = client(vm(), vm(), vm(), vm(revision=9))
    gone = HttpReply(404, b'{"status": 404, "code": "not-found", "detail": "no VM web"}')
    transport.answers.append(gone)
    assert [now.revision for now in sdk.vms.get("web").changes()] == [7, 9], "each revision once"


def test_lists_are_fetched_page_by_page_and_watched_with_what_was_deleted() -> None:
    changed, deleted = json.dumps(VM).encode(), b'{"id": "vm-2", "deleted": true}'
    stream = b"event: vm\nid: 7\ndata: %s\n\nevent: vm\nid: 8\ndata: %s\n\n" % (changed, deleted)
    pages = ({"items": [vm()], "next": "more"}, {"items": [vm(id="vm-2")], "next": None})
    sdk, transport = client(*pages, streams=(stream, None))
    assert [web.id for web in sdk.vms.list(state=VmState.RUNNING)] == ["vm-1", "vm-2"]
    assert "state=running" in transport.sent[0][1] and "cursor=more" in transport.sent[1][1]
    changes = sdk.vms.watch()
    first, second = next(changes), next(changes)
    assert (first.key, second) == ("vm-1", ObjectChange("vm-2", None))
    assert first.object is not None and first.object.status.state is VmState.RUNNING


def test_fields_that_this_version_does_not_know_are_left_out_and_new_values_say_update() -> None:
    newer = vm(later=1, spec={"image": "tiny", "later": {"a": 1}, "placement": {"later": 2}, "nics": [
        {"network": "lan", "later": 3}]}, status={"state": "running", "guest": {"later": 4}})  # fmt: skip
    read = typed.read(Vm, newer)
    assert read.spec.nics[0].network == "lan" and read.status.guest is not None
    with pytest.raises(errors.UnexpectedAnswer, match="the server is newer"):
        typed.read(Vm, vm(status={"state": "levitating"}))


def documented_codes() -> dict[str, int]:
    kinds = inspect.getmembers(model_errors, inspect.isclass)
    codes = {kind.code: kind.status for _, kind in kinds if issubclass(kind, model_errors.NovaError)}
    codes |= {code: status for status, (code, _) in problems.TITLES.items()}
    constants = [value for value in vars(refusals).values() if isinstance(value, refusals.Refusal)]
    return codes | {refusal.code: refusal.status for refusal in constants}


@pytest.mark.parametrize(("code", "status"), sorted(documented_codes().items()))
def test_each_refusal_is_an_exception_of_its_kind_with_its_code(code: str, status: int) -> None:
    with pytest.raises(errors.ApiError) as raised:
        decode(HttpReply(status, json.dumps({"status": status, "code": code, "detail": "no"}).encode()), "")
    assert raised.value.code == code
    assert type(raised.value) is not errors.ApiError or status in (405, 408, 415), "no exception of its own"


def test_the_stream_s_kinds_are_those_of_the_server() -> None:
    assert set(typed.STREAM_KINDS.values()) == set(PUBLIC)
    assert typed.STREAM_KINDS.keys() <= typed.KINDS.keys()
    for type_, kind in typed.STREAM_KINDS.items():
        if kind in feed.TABLES:  # what was deleted is called by the same key
            field = feed.TABLES[kind][1]
            assert typed.key_of(type_, {name: name for name in fields_of(type_)}) == field, kind


def fields_of(type_: type) -> tuple[str, ...]:
    return tuple(field.name for field in msgspec.structs.fields(type_))


def test_objects_are_called_by_what_the_paths_of_the_api_take() -> None:
    for type_, kind in typed.KINDS.items():
        for path in DOCUMENT["paths"]:
            match = re.match(rf"/api/v1/{kind}/{{(\w+)}}", path)
            if match and kind != "links":
                fields = {"id": "i", "name": "n", "address": "a"}
                body = {name: value for name, value in fields.items() if name in fields_of(type_)}
                assert typed.key_of(type_, body) == fields[match[1].replace("ref", "id")], path


COLLECTIONS = [name for name, member in vars(Collections).items() if isinstance(member, property)]


class Sent(Exception):
    """Stops a call after its first request."""


class Recorder(FakeTransport):
    """Takes one request, and answers none."""

    def __init__(self, paths: list[tuple[str, str]]) -> None:
        super().__init__()
        self.paths = paths

    def send(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None = None, timeout_s: float = 0
    ) -> HttpReply:
        self.paths.append((method, path))
        raise Sent

    def stream(self, path: str, headers: dict[str, str]) -> Iterator[bytes]:
        self.paths.append(("GET", path))
        raise Sent
        yield b""


def argument(parameter: inspect.Parameter) -> object:
    return {"condition": bool, "rules": [], "state": VmState.RUNNING}.get(parameter.name, "x")


def call(target: object, name: str) -> None:
    """Call a method with what it demands."""
    method = getattr(target, name)
    demanded = [
        parameter
        for parameter in inspect.signature(method).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    result = method(*map(argument, demanded))
    if isinstance(result, Iterator):
        next(result)


def methods(class_: type) -> list[str]:
    return [name for name, _ in inspect.getmembers(class_, inspect.isfunction) if not name.startswith("_")]


def typed_calls() -> Iterator[tuple[str, object, str]]:
    """Yield each method of each collection and of its objects, with what it is called on."""
    for name in COLLECTIONS:
        collection = getattr(OFFLINE, name)
        for method in methods(type(collection)):
            yield f"{name}.{method}", collection, method
    modules = (vm_handles, resources)
    for class_ in (member for module in modules for _, member in inspect.getmembers(module, inspect.isclass)):
        if issubclass(class_, handles.Handle) and class_.__module__ in (vm_handles.__name__, resources.__name__):
            for method in methods(class_):
                yield f"{class_.__name__}.{method}", class_, method


def shape_of(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{\w+\}", "[^/]+", path) + r"\Z")


OPERATIONS = [
    (method.upper(), shape_of(path), {p["name"] for p in operation.get("parameters", []) if p["in"] == "query"})
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
]


def handle_of(class_: Any, connection: Client) -> object:
    """A handle whose object has the value x wherever it is asked."""
    (base,) = (base for base in class_.__orig_bases__[:1])
    type_ = base.__args__[0]
    made = class_.__new__(class_)
    made._connection, made._type, made._kind = connection, type_, typed.kind_of(type_)
    made._ref, made._revision, made.object = "x", 1, Everything()
    return made


class Everything:
    """Has every attribute, and it is x."""

    def __getattr__(self, name: str) -> str:
        return "x"


@pytest.mark.parametrize(("target", "method"), [pytest.param(t, m, id=i) for i, t, m in typed_calls()])
def test_each_typed_method_calls_a_route_of_the_document(target: Any, method: str) -> None:
    paths: list[tuple[str, str]] = []
    sdk = with_transport(Recorder(paths))
    if isinstance(target, type):
        target = handle_of(target, sdk)
    else:
        target._connection = sdk
    with pytest.raises(Sent):
        call(target, method)
    ((verb, address),) = paths
    parts = urlsplit(address)
    matches = [query for known, shape, query in OPERATIONS if known == verb and shape.match(parts.path)]
    assert matches, f"there is no {verb} {parts.path}"
    assert set(parse_qs(parts.query)) <= set().union(*matches), f"{verb} {parts.path} does not take {parts.query}"


def test_what_methods_return_and_take_has_types() -> None:
    """Nothing of the typed interface is Any."""
    for _, target, method in typed_calls():
        function = getattr(target, method)
        hints = inspect.get_annotations(function)
        assert "return" in hints and not any("Any" in str(hint) for hint in hints.values()), (target, method)
