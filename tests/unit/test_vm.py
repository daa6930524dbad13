"""What a VM's spec may be, and what follows from its id."""

from __future__ import annotations

import re
import types
import typing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.api.routes.vms import CreateVm
from novacron.model import limits, mac
from novacron.model.errors import InvalidInput
from novacron.model.ipv4 import check_interface
from novacron.model.vm import VmChanges, VmFields, VmSpec, check_name, tap_name, vm_id
from novacron.model.vm_templates import FlavorSpec, TemplateSpec


@pytest.mark.parametrize("name", ["a", "web", "web-1", "0", "a" * 63])
def test_good_names_are_accepted_unchanged(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "ä", "a" * 64, "a b", "a\n", "../x", "a/b"])
def test_bad_names_are_refused_by_field(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_name(name)
    assert caught.value.field == "name"
    assert caught.value.hint


def test_a_name_must_not_look_like_an_id() -> None:
    with pytest.raises(InvalidInput, match="form of an id"):
        check_name(vm_id(bytes(10)))


@pytest.mark.parametrize("address", ["10.0.0.1", "10.0.0.300/24", "fe80::1/64", "10.0.0.1/33", "x", "10.0.0.1/24; rm"])
def test_bad_addresses_are_refused_by_field(address: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_interface(address)
    assert caught.value.field == "address"


@pytest.mark.parametrize(
    "spec",
    [
        {"image": "tiny", "vcpus": 0},
        {"image": "tiny", "vcpus": limits.VCPUS_MAX + 1},
        {"image": "tiny", "memory_mib": -1},
        {"image": "tiny", "memory_mib": limits.MEMORY_MIB_MAX + 1},
        {"image": "tiny", "memory_mib": "512"},
        {"image": "tiny", "colour": "red"},
        {"image": ""},
        {"image": "tiny", "cdroms": [{}] * (limits.CDROMS_PER_VM_MAX + 1)},
        {"image": "tiny", "cdroms": [{"iso": "../etc"}]},
        {"image": "tiny", "kernel": "/boot/vmlinuz"},
    ],
)
def test_specs_out_of_bounds_are_rejected(spec: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(spec, VmSpec)


@given(st.binary(min_size=10, max_size=10))
def test_names_derived_from_an_id_fit_their_length_limits(random: bytes) -> None:
    id = vm_id(random)
    assert re.fullmatch(r"vm-[a-z2-7]{16}", id)
    assert len(tap_name(id)) <= 15  # IFNAMSIZ - 1
    assert re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", mac.from_id(id))
    assert mac.from_id(id) == mac.from_id(id)


def _alternatives(annotation: object) -> set[object]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return set(typing.get_args(annotation)) - {msgspec.UnsetType} if is_union else {annotation}


DIFFERENT = {
    "VmChanges.disk_mib": "a disk has a size, which can't be taken from it",
    "TemplateSpec.nics": "without addresses, which each VM has of its own",
}
"""Fields whose type is not that of the VM's field, and why."""


@pytest.mark.parametrize("struct", [VmChanges, TemplateSpec, FlavorSpec, CreateVm])
def test_a_field_has_the_same_type_and_limits_wherever_it_is_set(struct: type[msgspec.Struct]) -> None:
    of_vms = {field.name: field.type for field in msgspec.structs.fields(VmFields)}
    for field in msgspec.structs.fields(struct):
        if field.name in of_vms:
            is_different = _alternatives(field.type) != _alternatives(of_vms[field.name])
            assert is_different == (f"{struct.__name__}.{field.name}" in DIFFERENT), field.name


def test_what_is_left_out_of_a_change_stays() -> None:
    assert {change.default for change in msgspec.structs.fields(VmChanges)} == {msgspec.UNSET}
    assert set(VmChanges.__struct_fields__) < set(VmFields.__struct_fields__)


def test_a_spec_and_a_request_to_create_a_vm_have_every_field_that_users_set() -> None:
    assert set(VmFields.__struct_fields__) < set(VmSpec.__struct_fields__)
    assert set(VmFields.__struct_fields__) < set(CreateVm.__struct_fields__)
