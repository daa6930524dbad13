"""The API stays compatible with the last release: what breaks programs that use it is found, whatever it is."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from lab import api_changes

Document = dict[str, Any]


@pytest.fixture(scope="module")
def released() -> Document:
    document: Document = json.loads(api_changes.RELEASED.read_text())
    return document


def test_nothing_breaks_programs_written_for_the_last_release(released: Document) -> None:
    present = api_changes.without_words(json.loads(api_changes.PRESENT.read_text()))
    assert not api_changes.breaking(released, present), "see CONTRIBUTING.md: how the API may change"


def schema(document: Document, name: str) -> Document:
    found: Document = document["components"]["schemas"][name]
    return found


BREAKING: dict[str, Callable[[Document], Any]] = {
    "DELETE /api/v1/vms/{ref} is gone": lambda d: d["paths"]["/api/v1/vms/{ref}"].pop("delete"),
    "GET /api/v1/vms does not take state any more": lambda d: d["paths"]["/api/v1/vms"]["get"].update(
        parameters=[p for p in d["paths"]["/api/v1/vms"]["get"]["parameters"] if p["name"] != "state"]
    ),
    "GET /api/v1/vms demands node": lambda d: next(
        p for p in d["paths"]["/api/v1/vms"]["get"]["parameters"] if p["name"] == "node"
    ).update(required=True),
    "POST /api/v1/vms does not answer with 201 any more": lambda d: d["paths"]["/api/v1/vms"]["post"]["responses"].pop(
        "201"
    ),
    "POST /api/v1/vms/{ref}/actions/stop demands a body": lambda d: d["paths"]["/api/v1/vms/{ref}/actions/stop"][
        "post"
    ]["requestBody"].update(required=True),
    "Vm.node is gone": lambda d: schema(d, "Vm")["properties"].pop("node"),
    "Vm.node may be missing": lambda d: schema(d, "Vm")["required"].remove("node"),
    "Vm.node: can be integer, too": lambda d: schema(d, "Vm")["properties"].update(
        node={"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "integer"}]}
    ),
    "CreateVm.node must be sent": lambda d: schema(d, "CreateVm")["required"].append("node"),
    "CreateVm.vcpus: maximum is 4, not 256": lambda d: schema(d, "CreateVm")["properties"]["vcpus"].update(maximum=4),
    "CreateVm.vcpus: must not be integer any more": lambda d: schema(d, "CreateVm")["properties"].update(
        vcpus={"type": "string"}
    ),
    "Firmware: must not be uefi any more": lambda d: schema(d, "Firmware")["enum"].remove("uefi"),
    "CreateVm.image: pattern is ^x$, not ": lambda d: schema(d, "CreateVm")["properties"]["image"].update(
        pattern="^x$"
    ),
}


@pytest.mark.parametrize("words", BREAKING)
def test_a_change_that_breaks_programs_is_found(released: Document, words: str) -> None:
    changed = copy.deepcopy(released)
    BREAKING[words](changed)
    found = api_changes.breaking(released, changed)
    assert any(change.startswith(words) for change in found), found


def test_additions_break_nothing(released: Document) -> None:
    changed = copy.deepcopy(released)
    changed["paths"]["/api/v1/new"] = {"get": changed["paths"]["/api/v1/me"]["get"]}
    schema(changed, "Vm")["properties"]["new"] = {"type": "string"}
    schema(changed, "Vm")["required"].append("new")
    schema(changed, "CreateVm")["properties"]["new"] = {"type": "string"}
    schema(changed, "CreateVm")["properties"]["vcpus"]["maximum"] = 1024
    assert not api_changes.breaking(released, changed)
