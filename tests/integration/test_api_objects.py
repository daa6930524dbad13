"""The API: what of objects can be changed, and what new ones begin with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from lab.platform import until
from tests.integration.conftest import Api

NewVm = Callable[..., dict[str, Any]]
NewName = Callable[[], str]

VMS = "/api/v1/vms"


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
    assert api("POST", "/api/v1/flavors", {"name": name, "spec": {"vcpus": 2, "memory_mib": 64}}).status == 201
    assert api("POST", "/api/v1/templates", {"name": name, "spec": {}}).status == 201
    assert api("POST", "/api/v1/floating-addresses", {"address": "198.51.100.77"}).status == 201
    try:
        for place in (f"vms/{vm['id']}", f"networks/{name}", f"security-groups/{name}", "projects/default",
                      f"flavors/{name}", f"templates/{name}",
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
        for place in (f"networks/{name}", f"security-groups/{name}", "floating-addresses/198.51.100.77",
                      f"flavors/{name}", f"templates/{name}"):  # fmt: skip
            assert api("DELETE", f"/api/v1/{place}").status == 200


def test_vms_are_created_with_flavors_and_templates(api: Api, new_name: NewName) -> None:
    flavor, template, like = new_name(), new_name(), new_name()
    size = {"vcpus": 2, "memory_mib": 96, "labels": {"rack": "none"}}
    spec = {"image": "tiny", "memory_mib": 128, "restart": "never", "placement": {"tolerations": ["x"]}}
    assert api("POST", "/api/v1/flavors", {"name": flavor, "spec": size, "shared": True}).body["project"] is None
    preset = {"flavor": flavor, "template": template}
    try:
        made = api("POST", "/api/v1/templates", {"name": template, "spec": spec})
        assert made.status == 201 and made.body["spec"].keys() == spec.keys(), "no field that was left out"
        assert made.headers["location"] == f"/api/v1/templates/{template}"
        assert api("POST", "/api/v1/templates", {"name": template, "spec": {}}).problem["field"] == "name"
        vm = api("POST", VMS, {"name": new_name(), "power": "stopped", "vcpus": 1, **preset}).body
        has = vm["spec"]
        assert (has["image"], has["vcpus"], has["memory_mib"], has["restart"]) == ("tiny", 1, 96, "never")
        assert has["placement"]["labels"] == {"rack": "none"} and has["placement"]["tolerations"] == ["x"]
        body = {"items": [{"name": new_name(), "power": "stopped", **preset}, {"name": new_name(), "template": "none"}]}
        one, other = api("POST", f"{VMS}/batch", body).body["items"]
        assert one["vm"]["spec"]["vcpus"] == 2 and other["problem"]["field"] == "template"
        assert api("POST", "/api/v1/templates", {"name": like, "vm": vm["name"]}).body["spec"]["restart"] == "never"
        for wrong, field in (
            ({"flavor": "none"}, "flavor"), ({"template": "none"}, "template"),
            ({"flavor": "../x", "image": "tiny"}, "flavor"),
            ({"flavor": flavor, "placement": {"labels": {f"l{n}": "x" for n in range(64)}}}, "flavor"),
        ):  # fmt: skip
            assert api("POST", VMS, {"name": new_name(), **wrong}).problem["field"] == field, wrong
        changed = api("PATCH", f"/api/v1/flavors/{flavor}", {"spec": {"vcpus": 4, "memory_mib": 64}}).body
        assert changed["spec"]["vcpus"] == 4 and api("GET", f"{VMS}/{vm['id']}").body["spec"]["vcpus"] == 1
        for made_vm in (vm, one["vm"]):
            assert api("DELETE", f"{VMS}/{made_vm['id']}").status == 202
    finally:
        assert api("DELETE", f"/api/v1/flavors/{flavor}").status == 200
        gone = [api("DELETE", f"/api/v1/templates/{name}").status for name in (template, like)]
    assert gone == [200, 200]
    assert api("GET", f"/api/v1/flavors/{flavor}").problem["hint"] == "see: novacron flavor list"


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
