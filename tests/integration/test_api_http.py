"""The API: concurrent and repeated requests, lists and streams, and the document."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lab.platform import Platform, until
from tests.integration.conftest import Answer, Api

NewVm = Callable[..., dict[str, Any]]
NewName = Callable[[], str]

VMS = "/api/v1/vms"


GOOD = {"name": "never-made", "image": "tiny", "memory_mib": 128}


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


# the document and its parameters


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
