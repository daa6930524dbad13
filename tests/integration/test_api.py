"""The API: its answers to valid and to invalid requests."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest

from lab.platform import Platform, until
from novacron.model import limits
from novacron.model.vm import vm_id
from tests.integration.conftest import Answer, Api

NewVm = Callable[..., dict[str, Any]]
NewName = Callable[[], str]

VMS = "/api/v1/vms"


def names(api: Api) -> set[str]:
    return {vm["name"] for vm in api("GET", f"{VMS}?limit=500").body["items"]}


# who may call


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_needs_no_token(api: Api, path: str) -> None:
    assert api("GET", path, token=None).status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", VMS), ("GET", f"{VMS}/x"), ("POST", VMS), ("DELETE", f"{VMS}/x"), ("PATCH", f"{VMS}/x"),
        ("POST", f"{VMS}/x/actions/stop"),
        ("GET", "/api/v1/nodes"), ("POST", "/api/v1/nodes/join-tokens"), ("GET", "/api/v1/migrations"),
        ("GET", "/api/v1/images"), ("GET", "/api/v1/events"), ("GET", "/api/v1/tokens"), ("POST", "/api/v1/tokens"),
        ("GET", "/schema"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("token", [None, "nva_wrong", "x" * 5000])
def test_everything_else_needs_a_valid_token(api: Api, method: str, path: str, token: str | None) -> None:
    answer = api(method, path, token=token)
    assert answer.problem["code"] == "unauthenticated" and answer.problem["hint"]
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("token", [None, "nva_wrong"])
def test_a_console_needs_a_valid_token(api: Api, token: str | None) -> None:
    assert api("POST", f"{VMS}/x/actions/open-console", token=token).status == 401


def test_a_revoked_token_is_refused_at_once(api: Api) -> None:
    created = api("POST", "/api/v1/tokens", {"name": "short-lived"}).body
    assert api("GET", VMS, token=created["secret"]).status == 200
    assert api("DELETE", f"/api/v1/tokens/{created['id']}").status == 204
    assert api("GET", VMS, token=created["secret"]).problem["status"] == 401


def test_the_last_valid_token_cannot_be_revoked(api: Api) -> None:
    tokens = api("GET", "/api/v1/tokens").body["items"]
    for token in tokens:
        if token["name"] != "first" and not token["revoked"]:
            assert api("DELETE", f"/api/v1/tokens/{token['id']}").status == 204
    last = next(token["id"] for token in tokens if token["name"] == "first")
    assert "nobody could administer the platform" in api("DELETE", f"/api/v1/tokens/{last}").problem["detail"]
    assert api("GET", VMS).status == 200


def test_secrets_of_tokens_are_shown_once_and_never_kept(api: Api, site: Platform) -> None:
    secret = api("POST", "/api/v1/tokens", {"name": "kept"}).body["secret"]
    assert secret not in json.dumps(api("GET", "/api/v1/tokens").body)
    for service in (site.server, *site.agents.values()):
        assert secret not in service.log.read_text()
    assert site.config.stat().st_mode & 0o777 == 0o600


def test_a_join_token_works_once(site: Platform, api: Api) -> None:
    from novacron import pki
    from novacron.model.token import decode_ticket

    secret = decode_ticket(site.client.join_token("host-z")).secret
    body = {"secret": secret, "csr": pki.certificate_request(pki.new_key(), "host-z").decode()}
    assert api("POST", "/api/v1/join", {**body, "name": "host-y"}, token=None).problem["field"] == "secret"
    assert api("POST", "/api/v1/join", {**body, "name": "host-z"}, token=None).status == 201
    assert api("POST", "/api/v1/join", {**body, "name": "host-z"}, token=None).problem["status"] == 401
    site.client.delete("nodes", "host-z")


def test_a_join_without_a_usable_request_does_not_use_up_the_token(site: Platform, api: Api) -> None:
    from novacron.model.token import decode_ticket

    secret = decode_ticket(site.client.join_token("host-y")).secret
    body = {"name": "host-y", "secret": secret, "csr": "not a request"}
    assert api("POST", "/api/v1/join", body, token=None).problem["field"] == "csr"
    assert all(node["name"] != "host-y" for node in site.client.list("nodes"))


# bad input: a problem that names the field, and nothing half made

GOOD = {"name": "never-made", "image": "tiny", "memory_mib": 128}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"image": "unknown"}, "image"),
        ({"image": "../tiny"}, "image"),
        ({"image": 7}, "image"),
        ({"memory_mib": 0}, "memory_mib"),
        ({"memory_mib": -1}, "memory_mib"),
        ({"memory_mib": 10**12}, "memory_mib"),
        ({"memory_mib": 128.5}, "memory_mib"),
        ({"memory_mib": "128"}, "memory_mib"),
        ({"memory_mib": None}, "memory_mib"),
        ({"vcpus": 0}, "vcpus"),
        ({"vcpus": -3}, "vcpus"),
        ({"vcpus": 100_000}, "vcpus"),
        ({"vcpus": True}, "vcpus"),
        ({"name": ""}, "name"),
        ({"name": "Upper"}, "name"),
        ({"name": "a" * 64}, "name"),
        ({"name": "new\nline"}, "name"),
        ({"name": "end\n"}, "name"),
        ({"name": vm_id(bytes(10))}, "name"),
        ({"name": ["web"]}, "name"),
        ({"colour": "red"}, "colour"),
        ({"power": "flying"}, "power"),
        ({"address": "10.0.0.1"}, "address"),
        ({"address": "10.0.0.1/24 init=/bin/sh"}, "address"),
        ({"node": "unknown"}, "node"),
        ({"node": "Bad Name"}, "node"),
    ],
)
def test_a_bad_field_is_named_and_nothing_is_created(api: Api, change: dict[str, Any], field: str) -> None:
    before = names(api)
    problem = api("POST", VMS, {**GOOD, **change}).problem
    assert 400 <= problem["status"] < 500
    assert problem["field"] == field, problem
    assert problem["hint"], problem
    assert names(api) == before


def test_a_missing_field_is_named(api: Api) -> None:
    problem = api("POST", VMS, {key: value for key, value in GOOD.items() if key != "name"}).problem
    assert problem["status"] == 400 and problem["field"] == "name"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b'{"name": "a"', b"{" * 5000])
def test_broken_json_is_a_bad_request(api: Api, raw: bytes) -> None:
    assert api("POST", VMS, raw=raw).problem["status"] == 400


def test_a_body_over_the_limit_is_refused(api: Api) -> None:
    body = json.dumps({**GOOD, "name": "x" * (limits.REQUEST_BODY_BYTES_MAX + 1)}).encode()
    assert api("POST", VMS, raw=body).problem["code"] == "too-large"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/nothing", 404),
        ("GET", f"{VMS}/unknown", 404),
        ("GET", f"{VMS}/UPPER%20CASE", 404),
        ("GET", f"{VMS}/%2e%2e%2fnodes", 404),
        ("GET", "/api/v1/nodes/unknown", 404),
        ("GET", "/api/v1/migrations/unknown", 404),
        ("GET", "/api/v1/images/unknown", 404),
        ("POST", f"{VMS}/unknown/actions/stop", 404),
        ("POST", f"{VMS}/unknown/actions/migrate", 404),
        ("DELETE", f"{VMS}/unknown", 404),
        ("POST", "/api/v1/migrations/unknown/actions/abort", 404),
        ("POST", "/api/v1/nodes/unknown/actions/drain", 404),
        ("DELETE", "/api/v1/tokens/unknown", 404),
        ("PUT", VMS, 405),
        ("GET", f"{VMS}?limit=0", 400),
        ("GET", f"{VMS}?limit=1000000", 400),
        ("GET", f"{VMS}?limit=x", 400),
        ("GET", f"{VMS}?cursor=%21%21", 400),
        ("GET", f"{VMS}?state=flying", 400),
        ("GET", "/api/v1/events?kinds=nothing", 400),
    ],
)  # fmt: skip
def test_missing_objects_and_bad_parameters_give_problem_details(api: Api, method: str, path: str, status: int) -> None:
    headers = {"Accept": "text/event-stream"} if "kinds" in path else {}
    assert api(method, path, raw=None, token="", **headers).problem["status"] == status


def test_a_name_in_use_is_refused(api: Api, new_vm: NewVm) -> None:
    vm = new_vm(power="stopped")
    problem = api("POST", VMS, {**GOOD, "name": vm["name"]}).problem
    assert (problem["status"], problem["field"]) == (409, "name")


def test_only_one_of_many_concurrent_creates_of_a_name_succeeds(api: Api, new_vm: NewVm, site: Platform) -> None:
    body = {**GOOD, "name": "contested", "power": "stopped"}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: api("POST", VMS, body).status, range(8)))
    assert sorted(answers) == [201] + [409] * 7
    site.client.delete("vms", "contested")
    until(lambda: "contested" not in names(api), "it is deleted")


def test_a_full_node_refuses_and_says_how_full_it_is(api: Api) -> None:
    problem = api("POST", VMS, {**GOOD, "node": "host-a", "memory_mib": limits.MEMORY_MIB_MAX}).problem
    assert (problem["status"], problem["code"], problem["field"]) == (409, "no-capacity", "node")
    assert "MiB of memory free" in problem["detail"]


def test_concurrent_creates_never_overfill_a_node(api: Api, site: Platform) -> None:
    total = site.client.get("nodes", "host-a")["status"]["inventory"]["memory_mib"] - limits.NODE_MEMORY_RESERVE_MIB
    size = total // 3
    bodies = [
        {"name": f"big{n}", "image": "tiny", "memory_mib": size, "node": "host-a", "power": "stopped"} for n in range(6)
    ]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda body: api("POST", VMS, body), bodies))
    created = [answer.body["name"] for answer in answers if answer.status == 201]
    for name in created:
        api("DELETE", f"{VMS}/{name}")
    until(lambda: not set(created) & names(api), "they are deleted")
    assert len(created) <= 3
    assert all(a.problem["code"] == "no-capacity" for a in answers if a.status != 201)


def test_a_cordoned_node_takes_nothing_new(api: Api, new_vm: NewVm) -> None:
    api("POST", "/api/v1/nodes/host-b/actions/cordon")
    try:
        assert "cordoned" in api("POST", VMS, {**GOOD, "node": "host-b"}).problem["detail"]
        vm = new_vm(power="stopped")
        until(lambda: api("GET", f"{VMS}/{vm['id']}").body["status"]["state"] == "stopped", "it is placed elsewhere")
        assert api("GET", f"{VMS}/{vm['id']}").body["node"] == "host-a"
        problem = api("POST", f"{VMS}/{vm['id']}/actions/migrate", {"target": "host-b"}).problem
        assert problem["field"] == "target" and "cordoned" in problem["detail"]
    finally:
        assert api("POST", "/api/v1/nodes/host-b/actions/uncordon").status == 200


def test_a_migration_to_the_same_an_unknown_or_no_node_is_refused(api: Api, new_vm: NewVm) -> None:
    vm = new_vm(node="host-a", power="stopped")
    until(lambda: api("GET", f"{VMS}/{vm['id']}").body["status"]["state"] == "stopped", "it is there")
    migrate = f"{VMS}/{vm['id']}/actions/migrate"
    for body, field in (({"target": "host-a"}, "target"), ({"target": "nowhere"}, "target"), ({"to": "x"}, "to")):
        problem = api("POST", migrate, body).problem
        assert problem["field"] == field, problem
    assert api("GET", f"{VMS}/{vm['id']}").body["migration"] is None


@pytest.mark.parametrize("action", ["pause", "resume", "reboot"])
def test_an_action_that_the_state_does_not_allow_says_the_state(api: Api, new_vm: NewVm, action: str) -> None:
    vm = new_vm(power="stopped")
    until(lambda: api("GET", f"{VMS}/{vm['id']}").body["status"]["state"] == "stopped", "it is there")
    problem = api("POST", f"{VMS}/{vm['id']}/actions/{action}").problem
    assert problem["code"] == "illegal-state" and "stopped" in problem["detail"]


# what can be changed


def off(api: Api, new_vm: NewVm, **fields: Any) -> dict[str, Any]:
    vm = new_vm(power="stopped", **fields)
    until(lambda: api("GET", f"{VMS}/{vm['id']}").body["status"]["state"] == "stopped", "it is there")
    return vm


def test_a_vm_is_renamed(api: Api, new_vm: NewVm, new_name: NewName) -> None:
    vm, other, name = off(api, new_vm), new_vm(power="stopped"), new_name()
    assert api("PATCH", f"{VMS}/{vm['id']}", {"name": name}).body["name"] == name
    assert api("GET", f"{VMS}/{name}").body["id"] == vm["id"]
    assert api("GET", f"{VMS}/{vm['name']}").status == 404
    problem = api("PATCH", f"{VMS}/{name}", {"name": other["name"]}).problem
    assert (problem["status"], problem["field"]) == (409, "name")
    happened = api("GET", f"/api/v1/events?object={vm['id']}").body["items"]
    assert any(f"name {vm['name']} to {name}" in event["message"] for event in happened)


def test_a_vm_that_is_off_is_resized_within_its_nodes_capacity(api: Api, new_vm: NewVm) -> None:
    vm = off(api, new_vm, node="host-a")
    changed = api("PATCH", f"{VMS}/{vm['id']}", {"memory_mib": 512, "vcpus": 2}).body
    assert (changed["spec"]["memory_mib"], changed["spec"]["vcpus"]) == (512, 2)
    inventory = api("GET", "/api/v1/nodes/host-a").body["status"]["inventory"]
    problem = api("PATCH", f"{VMS}/{vm['id']}", {"memory_mib": inventory["memory_mib"]}).problem
    assert (problem["code"], problem["field"]) == ("no-capacity", "memory_mib")
    assert api("GET", f"{VMS}/{vm['id']}").body["spec"]["memory_mib"] == 512
    running = new_vm(node="host-a")
    problem = api("PATCH", f"{VMS}/{running['id']}", {"memory_mib": 512}).problem
    assert problem["code"] == "illegal-state" and "while it is stopped" in problem["detail"]


def test_objects_of_every_kind_are_described_and_found_by_their_tags(
    api: Api, new_vm: NewVm, new_name: NewName
) -> None:
    name, tag = new_name(), "grün"
    vm = new_vm(power="stopped", tags=[tag, tag], description="of a shop", ha=False)
    assert (vm["tags"], vm["description"]) == ([tag], "of a shop")
    assert api("POST", "/api/v1/networks", {"name": name}).status == 201
    assert api("POST", "/api/v1/security-groups", {"name": name}).status == 201
    assert api("POST", "/api/v1/floating-addresses", {"address": "198.51.100.77"}).status == 201
    try:
        for place in (f"vms/{vm['id']}", f"networks/{name}", f"security-groups/{name}", "projects/default",
                      "nodes/host-a", "images/tiny", "floating-addresses/198.51.100.77"):  # fmt: skip
            kind = place.partition("/")[0]
            hostile = {"display_name": "\u202e\x1b[2JBücher 📚", "description": "two\nlines", "tags": [tag, "b"]}
            changed = api("PATCH", f"/api/v1/{place}", hostile)
            assert changed.status == 200 and hostile.items() <= changed.body.items(), (place, changed.body)
            refused = api("PATCH", f"/api/v1/{place}", {"tags": ["a b"]}).problem
            assert (refused["status"], refused["field"]) == (400, "tags"), place
            found = api("GET", f"/api/v1/{kind}?tag={quote(tag)},b").body["items"]
            assert len(found) == 1 and found[0]["tags"] == [tag, "b"], kind
            assert not api("GET", f"/api/v1/{kind}?tag={quote(tag)},c").body["items"]
            cleared = {"display_name": "", "description": "", "tags": []}
            assert api("PATCH", f"/api/v1/{place}", cleared).status == 200
            assert not api("GET", f"/api/v1/{kind}?tag=b").body["items"]
        for stale in ({"tags": ["x"]}, {"tags": ["x"], "rules": []}):
            assert api("PATCH", f"/api/v1/security-groups/{name}", stale, If_Match='"1"').problem["status"] == 412
        assert api("PATCH", f"{VMS}/{vm['id']}", {"tags": ["x"]}, If_Match='"1"').problem["status"] == 412
        both = api("PATCH", f"{VMS}/{vm['id']}", {"tags": ["x"], "restart": "never"}).body
        assert (both["tags"], both["spec"]["restart"]) == (["x"], "never")
        assert api("GET", "/api/v1/events?tag=x").problem["field"] == "tag"
        assert api("GET", f"{VMS}?tag=,").problem["field"] == "tag"
    finally:
        for place in (f"networks/{name}", f"security-groups/{name}", "floating-addresses/198.51.100.77"):
            assert api("DELETE", f"/api/v1/{place}").status == 200


def test_a_protected_vm_is_not_deleted(api: Api, new_vm: NewVm) -> None:
    vm = off(api, new_vm, protected=True)
    problem = api("DELETE", f"{VMS}/{vm['id']}").problem
    assert problem["status"] == 409 and "protected" in problem["detail"] and "--no-protect" in problem["hint"]
    assert not api("GET", f"{VMS}/{vm['id']}").body["deleting"]
    assert api("PATCH", f"{VMS}/{vm['id']}", {"protected": False}).status == 200
    assert api("DELETE", f"{VMS}/{vm['id']}").status == 202


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({}, None), ({"name": "Upper"}, "name"), ({"memory_mib": 1}, "memory_mib"), ({"vcpus": "2"}, "vcpus"),
        ({"restart": "sometimes"}, "restart"), ({"protected": 1}, "protected"), ({"image": "other"}, "image"),
    ],
)  # fmt: skip
def test_an_invalid_change_names_its_field_and_changes_nothing(
    api: Api, new_vm: NewVm, change: dict[str, Any], field: str | None
) -> None:
    vm = off(api, new_vm)
    before = api("GET", f"{VMS}/{vm['id']}").body
    problem = api("PATCH", f"{VMS}/{vm['id']}", change).problem
    assert problem["status"] == 400 and problem.get("field") == field and problem["hint"]
    assert api("GET", f"{VMS}/{vm['id']}").body == before


# concurrency and repetition


def test_a_stale_if_match_changes_nothing(api: Api, new_vm: NewVm) -> None:
    vm = new_vm(power="stopped")
    until(lambda: api("GET", f"{VMS}/{vm['id']}").body["status"]["state"] == "stopped", "it is there")
    shown = api("GET", f"{VMS}/{vm['id']}")
    assert shown.headers["etag"] == f'"{shown.body["revision"]}"'
    problem = api("POST", f"{VMS}/{vm['id']}/actions/start", If_Match='"1"').problem
    assert (problem["status"], problem["field"], problem["code"]) == (412, "If-Match", "stale-revision")
    assert api("GET", f"{VMS}/{vm['id']}").body["spec"]["power"] == "stopped"
    assert api("POST", f"{VMS}/{vm['id']}/actions/start", If_Match="garbage").problem["field"] == "If-Match"
    assert api("DELETE", f"{VMS}/{vm['id']}", If_Match='"1"').problem["status"] == 412
    assert api("DELETE", f"{VMS}/{vm['id']}", If_Match=shown.headers["etag"]).status == 202


def test_an_unchanged_object_is_not_sent_again(api: Api, new_vm: NewVm) -> None:
    vm = new_vm(power="stopped")
    until(lambda: api("GET", f"{VMS}/{vm['id']}").body["status"]["state"] == "stopped", "it is there")
    etag = api("GET", f"{VMS}/{vm['id']}").headers["etag"]
    again = api("GET", f"{VMS}/{vm['id']}", If_None_Match=etag)
    assert (again.status, again.body) == (304, "")


def test_a_request_repeated_with_its_key_takes_effect_once(
    api: Api, new_vm: NewVm, new_name: NewName, site: Platform
) -> None:
    body = {**GOOD, "name": new_name(), "power": "stopped"}
    first = api("POST", VMS, body, Idempotency_Key="k1")
    again = api("POST", VMS, body, Idempotency_Key="k1")
    assert first.status == again.status == 201
    assert first.body == again.body and first.headers["etag"] == again.headers["etag"]
    assert again.headers["idempotency-replayed"] == "true"
    other = api("POST", VMS, {**body, "name": new_name()}, Idempotency_Key="k1")
    assert (other.problem["status"], other.problem["field"]) == (422, "Idempotency-Key")
    assert api("POST", VMS, body, Idempotency_Key="x" * 300).problem["field"] == "Idempotency-Key"
    site.client.delete("vms", first.body["id"])


def test_a_refused_request_does_not_use_its_key_up(api: Api, new_name: NewName, site: Platform) -> None:
    body = {**GOOD, "name": new_name(), "power": "stopped"}
    assert api("POST", VMS, {**body, "node": "unknown"}, Idempotency_Key="k2").status == 404
    created = api("POST", VMS, body, Idempotency_Key="k2")
    assert created.status == 201
    site.client.delete("vms", created.body["id"])


def test_concurrent_repetitions_of_one_request_make_one_vm(api: Api, new_name: NewName, site: Platform) -> None:
    body = {**GOOD, "name": new_name(), "power": "stopped"}
    with ThreadPoolExecutor(6) as pool:
        answers: list[Answer] = list(pool.map(lambda _: api("POST", VMS, body, Idempotency_Key="k3"), range(6)))
    assert {answer.status for answer in answers} == {201}
    assert len({answer.body["id"] for answer in answers}) == 1
    site.client.delete("vms", answers[0].body["id"])


# lists and streams


def test_pages_hold_every_object_once(api: Api, new_vm: NewVm) -> None:
    created = {new_vm(power="stopped")["name"] for _ in range(5)}
    listed: list[str] = []
    cursor = ""
    for _ in range(20):
        page = api("GET", f"{VMS}?limit=2{cursor}").body
        assert len(page["items"]) <= 2
        listed += [vm["name"] for vm in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert created <= set(listed)
    assert listed == sorted(listed) and len(listed) == len(set(listed))


def test_lists_are_filtered(api: Api, new_vm: NewVm) -> None:
    vm = new_vm(node="host-b", power="stopped")
    until(lambda: api("GET", f"{VMS}/{vm['id']}").body["status"]["state"] == "stopped", "it is there")
    assert vm["name"] in {v["name"] for v in api("GET", f"{VMS}?node=host-b&state=stopped").body["items"]}
    assert vm["name"] not in {v["name"] for v in api("GET", f"{VMS}?node=host-a").body["items"]}
    assert vm["name"] not in {v["name"] for v in api("GET", f"{VMS}?state=running").body["items"]}


def test_a_read_waits_for_a_newer_revision(api: Api, new_vm: NewVm) -> None:
    vm = new_vm(power="stopped")
    until(lambda: api("GET", f"{VMS}/{vm['id']}").body["status"]["state"] == "stopped", "it is there")
    revision = api("GET", f"{VMS}/{vm['id']}").body["revision"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(api, "GET", f"{VMS}/{vm['id']}?newer_than={revision}&timeout_s=20")
        api("POST", f"{VMS}/{vm['id']}/actions/start")
        assert waiting.result(30).body["revision"] > revision


def test_the_event_stream_resumes_from_a_revision_without_a_gap(site: Platform, new_vm: NewVm) -> None:
    vm = new_vm(power="stopped")
    site.wait_state(vm["id"], "stopped")
    site.client.act("vms", vm["id"], "start")
    site.wait_state(vm["id"], "running")

    def reasons(after: int, last: str) -> list[str]:
        events: list[str] = []
        for kind, event in site.client.stream(after=after, kinds="event"):
            if kind == "event" and event.get("object") == vm["id"]:
                events.append(event["reason"])
                if event["reason"] == last:
                    return events
        raise AssertionError("the stream ended")

    whole = reasons(vm["revision"] - 1, "Running")
    assert whole[0] == "Created" and whole[-1] == "Running" and len(whole) == len(set(whole))
    started = next(event for event in site.client.list("events", object=vm["id"]) if event["reason"] == "Start")[
        "revision"
    ]
    assert reasons(started, "Running") == whole[whole.index("Start") + 1 :]


def test_resuming_from_an_invalid_revision_is_refused(api: Api) -> None:
    bad = api("GET", "/api/v1/events", Accept="text/event-stream", Last_Event_ID="x")
    assert bad.problem["field"] == "Last-Event-ID"


def test_events_say_who_did_what(api: Api, new_vm: NewVm) -> None:
    vm = new_vm(power="stopped")
    events = api("GET", f"/api/v1/events?object={vm['id']}").body["items"]
    assert events[-1]["reason"] == "Created" and events[-1]["actor"] == "administrator"


# the document


def test_the_schema_is_openapi_31_and_names_every_route(api: Api) -> None:
    schema = api("GET", "/schema").body
    assert schema["openapi"].startswith("3.1")
    routes = (
        *("/api/v1/vms", "/api/v1/vms/{ref}/actions/migrate", "/api/v1/nodes/{name}/actions/drain"),
        *("/api/v1/migrations/{id}/actions/abort", "/api/v1/images", "/api/v1/events", "/api/v1/tokens"),
    )
    for path in routes:
        assert path in schema["paths"], path
    assert schema["paths"]["/api/v1/vms"]["post"]["requestBody"], "bodies are described"


@pytest.mark.parametrize(
    "path, hint",
    [
        ("/api/v1/vms?stat=running", "did you mean state?"),
        ("/api/v1/vms/none?wait=3", "it takes: min_revision, newer_than, project, timeout_s"),
        ("/api/v1/events?kind=vm", "did you mean kinds?"),
        ("/metrics?x=1", "it takes none"),
        ("/healthz?x=1", "it takes none"),
        ("/api/v1/oidc/login?projects=x", "did you mean project?"),
        ("/api/v1/events?kinds=vm", "send Accept: text/event-stream"),
        ("/api/v1/vms?state=null", "leave it out"),
        ("/api/v1/vms?node=", "leave it out"),
        ("/api/v1/vms?name=web&name=db", "give it once"),
    ],
)
def test_a_parameter_that_is_unknown_or_has_not_one_value_is_refused_by_name(api: Api, path: str, hint: str) -> None:
    answer = api("GET", path)
    name = re.split("[?=]", path)[1]
    assert (answer.status, answer.problem["field"]) == (400, name), answer
    assert answer.problem["hint"].startswith(hint), answer.problem


def test_a_hundred_concurrent_readers_all_get_answers(api: Api) -> None:
    failures: list[Any] = []

    def read() -> None:
        answer = api("GET", VMS)
        if answer.status != 200:
            failures.append(answer)

    threads = [threading.Thread(target=read) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
