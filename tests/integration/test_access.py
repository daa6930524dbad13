"""Projects, users, roles, tokens and quotas: each route for each kind of caller, and the audit log."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import asyncpg
import pytest
from litestar import HttpMethod
from litestar.routes import HTTPRoute

from lab.platform import Platform, until
from novacron.api.access.authorization import RouteScope, right_of, scope_of
from novacron.api.app import create_app
from novacron.model.access import RIGHTS, Right, Role
from tests.integration.conftest import Answer, Api
from tests.waiting import eventually, pause

Object = dict[str, Any]
NAMES = {"ours": "acc-ours", "theirs": "acc-theirs"}
OFF = {"image": "tiny", "memory_mib": 64, "power": "stopped"}


class Tenants(NamedTuple):
    """Two projects with an object of each kind, and a token for each kind of caller."""

    tokens: dict[str, str]
    objects: dict[str, Object]
    """Of the project ``acc-ours``, by the name of the path parameter's kind."""


@pytest.fixture(scope="module")
def tenants(site: Platform) -> Iterator[Tenants]:
    client = site.client
    for name in NAMES.values():
        client.create_project(name, host_network=True)
    tokens = {}
    for role in Role:
        for where, project in (("everywhere", None), *NAMES.items()):
            user = client.create_user(f"acc-{role}-{where}", kind="service")
            client.grant(user["id"], role, NAMES.get(where, project))
            tokens[f"{role}-{where}"] = client.create_token("t", user=user["id"])["secret"]
    nobody = client.create_user("acc-nobody", kind="service")
    tokens["nobody"] = client.create_token("t", user=nobody["id"])["secret"]
    scoped = {"ref": client.request("POST", "/api/v1/vms?project=acc-ours", {
        "name": "acc-vm", "image": "tiny", "memory_mib": 64, "power": "stopped"})}  # fmt: skip
    scoped["network"] = client.request("POST", "/api/v1/networks?project=acc-ours", {"name": "acc-net"})
    scoped["group"] = client.request("POST", "/api/v1/security-groups?project=acc-ours", {"name": "acc-group"})
    size = {"name": "acc-flavor", "spec": {"vcpus": 1, "memory_mib": 64}}
    scoped["flavor"] = client.request("POST", "/api/v1/flavors?project=acc-ours", size)
    like = {"name": "acc-template", "spec": {}}
    scoped["template"] = client.request("POST", "/api/v1/templates?project=acc-ours", like)
    scoped["volume"] = client.request("POST", "/api/v1/volumes?project=acc-ours", {"name": "acc-vol", "size_mib": 4})
    scoped["address"] = client.request(
        "POST", "/api/v1/floating-addresses?project=acc-ours", {"address": "198.19.200.7"}
    )  # fmt: skip
    yield Tenants(tokens, scoped)
    client.delete("vms", scoped["ref"]["id"])
    until(lambda: client.get("volumes", scoped["volume"]["id"])["phase"] == "ready", "it is made")
    client.delete("volumes", scoped["volume"]["id"])
    client.request("DELETE", "/api/v1/networks/acc-net")
    client.request("DELETE", "/api/v1/security-groups/acc-group")
    client.request("DELETE", "/api/v1/flavors/acc-flavor")
    client.request("DELETE", "/api/v1/templates/acc-template")
    client.request("DELETE", "/api/v1/floating-addresses/198.19.200.7")
    for user in list(client.list("users")):
        if user["name"].startswith("acc-"):
            client.delete("users", user["id"])
    until(lambda: not any(vm["name"] == "acc-vm" for vm in client.list("vms")), "the VM is gone")
    for name in NAMES.values():
        until(lambda name=name: is_deleted(client, name), f"project {name} is gone")  # type: ignore[misc]


def is_deleted(client: Any, name: str) -> bool:
    try:
        client.delete("projects", name)
    except Exception as error:  # its volume takes a moment
        return "no project" in str(error)
    return True


def routes() -> list[tuple[str, str, Any]]:
    """Return ``(method, path, handler)`` of everything that the application serves."""
    app = create_app(None)  # type: ignore[arg-type]
    endpoints = []
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for method, (handler, _) in route.route_handler_map.items():
                if method not in (HttpMethod.HEAD, "OPTIONS"):
                    endpoints.append((str(method), route.path_format, handler))
    return sorted(endpoints, key=lambda endpoint: endpoint[:2])


ALL = routes()
OWNED = {"vms": "ref", "networks": "network", "security-groups": "group", "volumes": "volume",
         "flavors": "flavor", "templates": "template",
         "floating-addresses": "address"}  # fmt: skip


def fill_in_path(path: str, objects: dict[str, Object]) -> str:
    """Return a path with the name of an object of ours in place of its first parameter, and made-up others."""
    kind = path.split("/")[3] if path.count("/") > 2 else ""
    ours = objects.get(OWNED.get(kind, ""), {})
    first = str(ours.get("id") or ours.get("address") or ours.get("name") or "none")
    path = re.sub(r"\{[^}]*\}", first, path, count=1)
    return re.sub(r"\{[^}]*\}", "none", path)


def test_every_route_declares_its_scope() -> None:
    assert len(ALL) > 90
    silent = [(method, path) for method, path, handler in ALL if scope_of(handler) is None]
    assert all(path.startswith("/schema/ui") for _, path in silent), "such a route is served to nobody"
    public = {path for _, path, handler in ALL if scope_of(handler) is RouteScope.PUBLIC}
    assert public == {"/healthz", "/readyz", "/api/v1/join", "/api/v1/login", "/api/v1/login/second-factor",
                      "/api/v1/login/link", "/api/v1/oidc/login",
                      "/api/v1/oidc/callback"}  # fmt: skip


@pytest.mark.parametrize("who", ["outsider", "nobody", *(f"{role}-{where}" for role in Role
                                                          for where in ("everywhere", "ours", "theirs"))])  # fmt: skip
def test_each_route_serves_only_callers_with_its_right(api: Api, tenants: Tenants, who: str) -> None:
    """Requests have no body, or one that no route takes: who is let in gets 400, 404 or 409, and changes nothing."""
    token = tenants.tokens.get(who, "nva_wrong")
    wrong: list[str] = []
    for method, path, handler in ALL:
        scope = scope_of(handler)
        if scope in (RouteScope.PUBLIC, None) or path == "/api/v1/logout":  # that works, and is tried elsewhere
            continue
        right = right_of(handler, method)
        address = fill_in_path(path, tenants.objects)
        body = None if method == "GET" else {"no-such-field": True}
        if method == "DELETE" or (method == "POST" and handler.parsed_data_field is None):
            address = re.sub(rf"({'|'.join(OWNED)})/[^/]+", r"\1/none", address)
        answer = api(method, address, body, token=token, if_match='"1"')
        if answer.status == 429:  # so many wrong tokens from one address
            pause(float(answer.headers["retry-after"]))
            answer = api(method, address, body, token=token, if_match='"1"')
        wrong += _judge(who, scope, right, method, address, answer, tenants)
    assert not wrong, "\n".join(wrong)


def _judge(who: str, scope: Any, right: Right, method: str, path: str, answer: Answer, tenants: Tenants) -> list[str]:
    said = f"{who}: {method} {path}: {answer.status} {answer.body if answer.status >= 400 else ''}"[:300]
    if answer.status >= 500:
        return [said]
    if who == "outsider":
        return [] if answer.status == 401 else [said]
    role, _, where = who.partition("-")
    rights = RIGHTS[Role(role)] if who != "nobody" else frozenset()
    if scope is RouteScope.FLEET:
        allowed = where == "everywhere" and right in rights
        return [] if (answer.status not in (401, 403)) is allowed else [said]
    if scope is RouteScope.SELF:
        return [] if answer.status != 401 else [said]
    about_ours = any(str(value) in path for ours in tenants.objects.values()
                     for key, value in ours.items() if key in ("id", "address", "name"))  # fmt: skip
    if about_ours:
        sees = where in ("everywhere", "ours") and who != "nobody"
        if not sees:
            return [] if answer.status in (400, 404) else [said]
        allowed = right in rights
        bad_body = answer.status == 400  # what is sent is read before the object is looked for
        return [] if bad_body or (answer.status != 403) is allowed else [said]
    return [] if answer.status != 401 else [said]


def test_nobody_sees_objects_of_other_projects(api: Api, tenants: Tenants) -> None:
    vm, other = tenants.objects["ref"], tenants.tokens["member-theirs"]
    for path in (f"/api/v1/vms/{vm['id']}", "/api/v1/vms/acc-vm", f"/api/v1/vms/{vm['id']}/snapshots",
                 "/api/v1/networks/acc-net", "/api/v1/projects/acc-ours", "/api/v1/vms?project=acc-ours"):  # fmt: skip
        assert api("GET", path, token=other).status == 404, path
    for kind in ("vms", "networks", "volumes", "security-groups", "floating-addresses", "migrations", "events",
                 "exports", "imports", "forwards", "flavors", "templates"):  # fmt: skip
        mine = api("GET", f"/api/v1/{kind}", token=tenants.tokens["viewer-ours"])
        visible = api("GET", f"/api/v1/{kind}", token=other)
        assert mine.status == visible.status == 200
        assert "acc-ours" not in str(visible.body), kind
        assert all(item["project"] == "acc-ours" for item in mine.body["items"]), kind
    assert api("GET", "/api/v1/vms", token=tenants.tokens["nobody"]).body["items"] == []
    attached = {"vm": vm["id"]}
    assert api("POST", "/api/v1/forwards", {**attached, "vm_port": 80, "port": 8080}, token=other).status == 404
    created = api("POST", "/api/v1/vms", {
        "name": "spy", "image": "tiny", "memory_mib": 64, "nics": [{"network": "acc-net"}]}, token=other)  # fmt: skip
    assert created.status == 404 and created.problem["field"] == "nics"


def test_shared_flavors_are_everybodys_to_use_and_operators_to_change(api: Api, tenants: Tenants) -> None:
    body = {"name": "acc-shared", "spec": {"vcpus": 1, "memory_mib": 64}, "shared": True}
    member, operator = tenants.tokens["member-everywhere"], tenants.tokens["operator-everywhere"]
    assert api("POST", "/api/v1/flavors", body, token=member).status == 403
    assert api("POST", "/api/v1/flavors", body, token=operator).status == 201
    place, other = "/api/v1/flavors/acc-shared", tenants.tokens["member-theirs"]
    try:
        assert api("GET", place, token=other).body["project"] is None
        assert "acc-shared" in str(api("GET", "/api/v1/flavors", token=other).body)
        assert "acc-shared" in str(api("GET", "/api/v1/flavors?project=acc-theirs", token=other).body)
        for method, change in (("PATCH", {"description": "mine"}), ("DELETE", None)):
            for token in (other, member):
                assert api(method, place, change, token=token).status == 403
        hidden = {"name": "spy", "image": "tiny", "flavor": "acc-flavor"}
        assert api("POST", "/api/v1/vms", hidden, token=other).problem["field"] == "flavor", "another project's"
    finally:
        assert api("DELETE", place, token=operator).status == 200


def test_a_name_is_unique_within_its_project_only(api: Api, tenants: Tenants) -> None:
    body = {"name": "acc-vm", "image": "tiny", "memory_mib": 64, "power": "stopped"}
    assert api("POST", "/api/v1/vms", body, token=tenants.tokens["member-ours"]).status == 409
    created = api("POST", "/api/v1/vms", body, token=tenants.tokens["member-theirs"])
    assert created.status == 201 and created.body["project"] == "acc-theirs", "where its user may make things"
    try:
        ours = api("GET", "/api/v1/vms/acc-vm", token=tenants.tokens["member-ours"])
        assert ours.body["id"] == tenants.objects["ref"]["id"]
        unclear = api("GET", "/api/v1/vms/acc-vm")
        assert unclear.status == 409 and "acc-ours, acc-theirs" in unclear.problem["detail"]
        assert api("GET", "/api/v1/vms/acc-vm?project=acc-theirs").body["id"] == created.body["id"]
    finally:
        assert api("DELETE", f"/api/v1/vms/{created.body['id']}").status == 202


def test_the_stream_of_changes_is_filtered(site: Platform, api: Api, tenants: Tenants) -> None:
    after = api("GET", "/api/v1/vms").body["revision"]
    user = next(user for user in site.client.list("users") if user["name"] == "acc-viewer-theirs")
    size = {"name": "acc-for-all", "spec": {"vcpus": 1, "memory_mib": 64}, "shared": True}
    assert api("POST", "/api/v1/flavors", size).status == 201
    created = api("POST", "/api/v1/security-groups?project=acc-ours", {"name": "acc-hidden"})
    shown = api("POST", "/api/v1/security-groups?project=acc-theirs", {"name": "acc-shown"})
    assert created.status == shown.status == 201
    try:
        text = read_stream(site, tenants.tokens["viewer-theirs"], after, "acc-shown")
        assert "acc-hidden" not in text and "acc-for-all" in text
        assert "acc-hidden" in read_stream(site, api.token, after, "acc-shown")
        assert user["name"] not in text
    finally:
        for name in ("acc-hidden", "acc-shown"):
            api("DELETE", f"/api/v1/security-groups/{name}")
        api("DELETE", "/api/v1/flavors/acc-for-all")


def read_stream(site: Platform, token: str, after: int, until_text: str) -> str:
    """Return what the stream of changes says up to some text."""
    import ssl

    import urllib3

    config = site.client.config
    pool = urllib3.PoolManager(ssl_context=ssl.create_default_context(cadata=config.ca))
    headers = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream", "Last-Event-ID": str(after)}
    answer = pool.request("GET", f"{config.url}/api/v1/events", headers=headers, preload_content=False, timeout=10)
    text = ""
    try:
        deadline = time.monotonic() + 10
        while until_text not in text and time.monotonic() < deadline:
            text += answer.read1(65536).decode()
    finally:
        answer.close()
    assert until_text in text
    return text


def test_vms_of_a_project_without_the_hosts_network_need_a_network(site: Platform, api: Api) -> None:
    site.client.create_project("acc-inside")
    try:
        refused = api("POST", "/api/v1/vms?project=acc-inside", {"name": "out", **OFF})
        assert refused.status == 400 and refused.problem["field"] == "nics"
        bridge = {"name": "acc-bridge", "kind": "bridge", "bridge": "br0"}
        admin = site.client.create_user("acc-inside-admin", kind="service", project="acc-inside")
        site.client.grant(admin["id"], "administrator", "acc-inside")
        token = site.client.create_token("t", user=admin["id"])["secret"]
        assert api("POST", "/api/v1/networks", bridge, token=token).status == 403, "the hosts' network is not theirs"
    finally:
        site.client.delete("projects", "acc-inside")
    assert not any(user["name"] == "acc-inside-admin" for user in site.client.list("users")), "it goes with its project"


def test_a_token_expires_can_have_fewer_rights_and_is_revoked_at_once(
    site: Platform, api: Api, tenants: Tenants
) -> None:
    user = next(user for user in site.client.list("users") if user["name"] == "acc-member-ours")
    limited = site.client.create_token("r", user=user["id"], scopes=["read"], expires_in_s=3600)
    vm = f"/api/v1/vms/{tenants.objects['ref']['id']}"
    assert api("GET", vm, token=limited["secret"]).status == 200
    assert api("POST", f"{vm}/actions/start", token=limited["secret"]).status == 403
    more = api("POST", "/api/v1/tokens", {"name": "more"}, token=limited["secret"])
    assert more.status == 403 and more.problem["field"] == "scopes"
    longer = api("POST", "/api/v1/tokens", {"name": "longer", "scopes": ["read"]}, token=limited["secret"])
    assert longer.status == 403 and longer.problem["field"] == "expires_in_s"
    other = api("POST", "/api/v1/tokens", {"name": "x", "user": "acc-member-theirs"}, token=limited["secret"])
    assert other.status == 404 and other.problem["field"] == "user"
    site.client.delete("tokens", limited["id"])
    assert api("GET", vm, token=limited["secret"]).status == 401
    site.client.configure_user(user["id"], disabled=True)
    assert api("GET", vm, token=tenants.tokens["member-ours"]).status == 401
    site.client.configure_user(user["id"], disabled=False)
    assert api("GET", vm, token=tenants.tokens["member-ours"]).status == 200
    listed = [token for token in site.client.list("tokens") if token["user"] == user["id"]]
    assert listed and all("hash" not in token and "secret" not in token for token in listed)


def test_the_last_administrator_cannot_be_removed(api: Api, site: Platform) -> None:
    me = site.client.me()["user"]
    grant = next(g for g in site.client.list("grants") if g["user_name"] == me and g["project"] is None)
    others = [g for g in site.client.list("grants") if g["project"] is None and g["role"] == "administrator"]
    if len(others) == 1:
        for method, path, body in (
            ("DELETE", f"/api/v1/grants/{grant['id']}", None),
            ("DELETE", f"/api/v1/users/{me}", None),
            ("PATCH", f"/api/v1/users/{me}", {"disabled": True}),
            ("POST", "/api/v1/grants", {"user": me, "role": "viewer"}),
        ):
            refused = api(method, path, body)
            assert refused.status == 409 and "this would leave no administrator" in refused.problem["detail"], path


def test_a_password_opens_a_session_and_guesses_are_slowed_down(site: Platform, api: Api) -> None:
    user = site.client.create_user("acc-ann", password="correct horse battery")
    site.client.grant(user["id"], "viewer", None)
    try:
        assert api("POST", "/api/v1/login", {"user": "acc-ann", "password": "wrong"}, token=None).status == 401
        done = api("POST", "/api/v1/login", {"user": "acc-ann", "password": "correct horse battery"}, token=None)
        assert done.status == 201 and done.body["user"] == "acc-ann"
        cookie = next(part for part in done.headers.getlist("set-cookie") if "-session=" in part)
        assert all(part in cookie.lower() for part in ("httponly", "secure", "samesite=strict", "path=/"))
        secret = cookie.split(";")[0]
        assert api("GET", "/api/v1/vms", token=None, Cookie=secret).status == 200
        value = secret.partition("=")[2]
        assert api("GET", "/api/v1/vms", token=value).status == 401, "a cookie's value is no token"
        body = {"name": "from-page"}
        assert api("POST", "/api/v1/tokens", body, token=None, Cookie=secret).status == 403
        sent = {"Cookie": secret, "X_CSRF_Token": done.body["csrf"]}
        assert api("POST", "/api/v1/tokens", body, token=None, **sent).status == 201
        assert api("POST", "/api/v1/logout", token=None, **sent).status == 204
        assert api("GET", "/api/v1/vms", token=None, Cookie=secret).status == 401
        for _ in range(12):
            last = api("POST", "/api/v1/login", {"user": "acc-ann", "password": "guess"}, token=None)
        assert last.status == 429
        right = api("POST", "/api/v1/login", {"user": "acc-ann", "password": "correct horse battery"}, token=None)
        assert right.status == 429, "whoever guesses learns nothing now"
        until(
            lambda: (
                {record["status"] for record in site.client.list("audit", object="acc-ann", outcome="refused")}
                >= {401, 429}
            ),
            "the audit log has failed logins, with the name that was tried",
        )
        device = next(part for part in done.headers.getlist("set-cookie") if "-device=" in part).partition(";")[0]
        known = api("POST", "/api/v1/login", {"user": "acc-ann", "password": "correct horse battery"}, token=None,
                    Cookie=device)  # fmt: skip
        assert known.status == 201 and "-device=" not in known.headers["set-cookie"], "nobody locks a user out"
        forged = device.replace("=", "=x")
        assert api("POST", "/api/v1/login", {"user": "acc-ann", "password": "correct horse battery"}, token=None,
                   Cookie=forged).status == 429  # fmt: skip
        weak = api("PUT", f"/api/v1/users/{user['id']}/password", {"password": "aaaaaaaaaa"})
        assert weak.status == 400 and weak.problem["field"] == "password", "easy to guess"
    finally:
        site.client.delete("users", user["id"])


async def test_the_audit_log_records_every_change_and_refusal_and_cannot_be_altered(
    site: Platform, api: Api, tenants: Tenants
) -> None:
    vm = tenants.objects["ref"]["id"]
    viewer = tenants.tokens["viewer-ours"]
    assert api("DELETE", f"/api/v1/vms/{vm}", token=viewer).status == 403
    assert api("PATCH", f"/api/v1/vms/{vm}", {"restart": "never"}, X_Request_Id="from-the-test").status == 200
    assert api("GET", "/api/v1/vms", token="nva_wrong").status == 401

    def found(**filters: str) -> list[Object]:
        return [r for r in site.client.list("audit", limit=200) if all(r[key] == v for key, v in filters.items())]

    refused = until(lambda: found(actor="acc-viewer-ours", action="delete_vm", outcome="refused"), "it is written down")
    assert refused[0]["status"] == 403 and refused[0]["object"] == vm and refused[0]["address"] != "-"
    done = found(action="configure_vm", outcome="done", object=vm)
    assert done and done[0]["project"] == "acc-ours" and done[0]["name"] == "acc-vm"
    until(lambda: found(actor="-", outcome="refused", action="list_vms"), "strangers are written down, too")
    ours = api("GET", "/api/v1/audit?project=acc-ours", token=tenants.tokens["administrator-ours"])
    assert ours.status == 200 and {record["project"] for record in ours.body["items"]} == {"acc-ours"}
    assert api("GET", "/api/v1/audit", token=tenants.tokens["administrator-ours"]).status == 403
    connection = await asyncpg.connect(site.postgres.url)
    try:
        for statement in ("DELETE FROM audit", "UPDATE audit SET actor = 'nobody'", "TRUNCATE audit"):
            with pytest.raises(asyncpg.RaiseError, match="stays as it is"):
                await connection.execute(statement)
        refusals = "SELECT count(*) FROM api_log WHERE status = 403 AND route LIKE '%vms/{ref%'"
        named = "SELECT count(*) FROM api_log WHERE request_id = 'from-the-test'"
        await eventually(lambda: connection.fetchval(refusals), "the refusal is in the request log")
        await eventually(lambda: connection.fetchval(named), "the change is in the request log")
        assert await connection.fetchval(named) == 1
    finally:
        await connection.close()


def test_callers_learn_who_they_are(site: Platform, api: Api, tenants: Tenants) -> None:
    shown = site.cli("whoami").stdout
    assert "administrator" in shown and "manage" in shown
    listed = site.cli("project", "list").stdout
    assert "acc-ours" in listed and "default" in listed
    assert "VMs" not in site.cli("project", "show", "acc-ours").stdout
    assert site.cli("--project", "acc-ours", "vm", "list").stdout.count("acc-vm") == 1
    assert "acc-vm" not in site.cli("--project", "default", "vm", "list").stdout
    assert api("GET", "/api/v1/nodes", token=tenants.tokens["viewer-ours"]).status == 403
    until(lambda: "list_nodes" in site.cli("audit", "--outcome", "refused").stdout, "it is written down")


def test_a_project_is_renamed_with_all_of_its_objects(site: Platform, api: Api) -> None:
    site.cli("project", "create", "acc-before", "--host-network", "--quota", "vms=3")
    created = api("POST", "/api/v1/vms?project=acc-before", {"name": "moved", **OFF}).body
    site.cli("project", "set", "acc-before", "--name", "acc-after", "--quota", "vms=none")
    vm = api("GET", f"/api/v1/vms/{created['id']}").body
    assert vm["project"] == "acc-after"
    assert api("GET", "/api/v1/vms/moved?project=acc-after").body["id"] == created["id"]
    assert api("GET", "/api/v1/projects/acc-before").status == 404
    shown = api("GET", "/api/v1/projects/acc-after/usage").body
    assert shown["usage"]["vms"] == 1 and shown["quota"]["vms"] is None
    events = api("GET", "/api/v1/events?project=acc-after&object=moved").body["items"]
    assert any(event["reason"] == "Created" for event in events)
    api("DELETE", f"/api/v1/vms/{created['id']}?wait=30")
    until(lambda: is_deleted(site.client, "acc-after"), "it is gone")
