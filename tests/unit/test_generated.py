"""Files that are made of others are made of these as they are now."""

from __future__ import annotations

import inspect

import msgspec

from lab import generate
from novacron.cli.vm_options import VM_OPTIONS
from novacron.client import AsyncClient, Client
from novacron.client.choices import VM_FIELDS
from novacron.model.vm import VmFields


def test_generated_files_are_up_to_date() -> None:
    stale = [str(path) for path, text in generate.generated().items() if not path.exists() or path.read_text() != text]
    assert not stale, "run: script/generate"


def test_every_field_of_a_vm_has_an_option() -> None:
    by_hand = {"placement", "nics", "image", "cdroms"}
    fields = {field.name for field in msgspec.structs.fields(VmFields)} - by_hand
    assert {entry.field for entry in VM_OPTIONS} == fields == set(VM_FIELDS) - by_hand, "add a line to VM_OPTIONS"


def test_the_clients_have_the_same_methods_with_the_same_parameters() -> None:
    def methods(client: type) -> dict[str, list[str]]:
        members = inspect.getmembers(client, inspect.isfunction)
        return {name: list(inspect.signature(method).parameters) for name, method in members if name[0] != "_"}

    asynchronous = methods(AsyncClient)
    assert asynchronous.pop("do") == ["self", "work"]
    assert asynchronous == methods(Client)
