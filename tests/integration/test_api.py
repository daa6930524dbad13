"""The API: who may call it, and its answers to invalid requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lab.platform import Platform, until
from novacron.model import limits
from novacron.model.vm import vm_id
from tests.integration.conftest import Api

NewVm = Callable[..., dict[str, Any]]

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
    assert "leave no way to administer the platform" in api("DELETE", f"/api/v1/tokens/{last}").problem["detail"]
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
