"""MAC addresses as values: which are made, which may be chosen, and how a VM's interfaces get theirs."""

from __future__ import annotations

import re
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.client import archive
from novacron.client.api import Client
from novacron.client.archive_format import ArchivedDisk, ArchivedVm
from novacron.client.errors import ApiError
from novacron.local.doctor import running
from novacron.local.doctor.finding import Grade
from novacron.model import mac
from novacron.model.errors import InvalidInput
from novacron.model.network import NicSpec
from novacron.model.vm import VmSpec, mac_addresses, with_mac_addresses
from novacron.store import macs


@given(st.binary(min_size=5, max_size=5))
def test_every_new_mac_address_keeps_all_of_its_40_random_bits_and_may_be_chosen(random: bytes) -> None:
    address = mac.from_random(random)
    assert bytes.fromhex(address.replace(":", "")) == b"\x06" + random
    assert mac.check(address.upper(), "mac") == address


def test_a_million_new_mac_addresses_collide_once_at_most_before_the_store_looks() -> None:
    """The expected number of collisions is 0.45; hashes with 24 bits had 29,000."""
    drawn = [macs.assign(VmSpec(image="tiny")).mac for _ in range(2000)]
    assert len(set(drawn)) == len(drawn)
    assert 1_000_000**2 / 2 / 2 ** (8 * mac.RANDOM_BYTES) < 1


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("06:00:00:00:00", "not a MAC address"),
        ("06:00:00:00:00:0g", "not a MAC address"),
        ("06-00-00-00-00-01", "not a MAC address"),
        ("06:00:00:00:00:01\n", "not a MAC address"),
        ("٠6:00:00:00:00:01", "not a MAC address"),
        ("01:00:5e:00:00:01", "multicast"),
        ("ff:ff:ff:ff:ff:ff", "multicast"),
        ("00:00:00:00:00:00", "can't be used as an interface"),
        ("FE:54:00:00:00:01", "taps"),
        ("02:4e:4f:56:00:01", "gateways"),
        ("02:4e:4f:57:00:01", "nodes"),
    ],
)
def test_a_mac_address_that_no_guest_can_have_is_refused_with_its_field(address: str, why: str) -> None:
    for spec, field in (
        (VmSpec(image="tiny", mac=address), "mac"),
        (VmSpec(image="tiny", nics=(NicSpec("lan"), NicSpec("wan", mac=address))), "nics[1].mac"),
    ):
        with pytest.raises(InvalidInput, match=re.escape(why)) as refused:
            macs.assign(spec)
        assert refused.value.field == field and refused.value.hint


def test_each_interface_gets_a_mac_address_of_its_own_and_keeps_one_that_was_chosen() -> None:
    nics = (NicSpec("lan"), NicSpec("lan", mac="52:54:00:AA:BB:CC"), NicSpec("wan"))
    spec = macs.assign(VmSpec(image="tiny", nics=nics))
    first, second, third = mac_addresses("vm-x", spec)
    assert second == "52:54:00:aa:bb:cc" and len({first, second, third}) == 3 and spec.mac is None
    with pytest.raises(InvalidInput, match="another interface") as twice:
        macs.assign(VmSpec(image="tiny", nics=(nics[1], NicSpec("wan", mac="52:54:00:aa:bb:cc"))))
    assert twice.value.field == "nics[1].mac"
    with pytest.raises(InvalidInput, match="each interface names its own MAC") as beside:
        macs.assign(VmSpec(image="tiny", nics=nics, mac="06:00:00:00:00:01"))
    assert beside.value.field == "mac"


def test_a_vm_created_before_mac_addresses_were_assigned_keeps_the_one_of_its_id() -> None:
    old, nics = VmSpec(image="tiny"), (NicSpec("lan"), NicSpec("wan"))
    assert with_mac_addresses("vm-abc", old).mac == mac.from_id("vm-abc") == "52:54:00:d9:3d:09"
    told = with_mac_addresses("vm-abc", VmSpec(image="tiny", nics=nics))
    assert [nic.mac for nic in told.nics] == [mac.from_id("vm-abc"), mac.from_id("vm-abc", 1)]


def test_the_doctor_names_vms_that_have_had_the_same_mac_address_from_before() -> None:
    def vm(name: str, id: str, own: str | None, *nics: str | None) -> dict[str, object]:
        return {"name": name, "id": id, "spec": {"mac": own, "nics": [{"mac": nic} for nic in nics]}}

    apart = [vm("web", "vm-1", None), vm("db", "vm-2", "06:00:00:00:00:01"), vm("two", "vm-1x", None, None, None)]
    assert not list(running._shared_macs(apart))
    (found,) = running._shared_macs([*apart, vm("late", "vm-3", None, None, mac.from_id("vm-1"))])
    assert found.grade is Grade.WARNING and "web, late" in found.found and mac.from_id("vm-1") in found.found
    assert "novacron vm set late --mac new" in found.advice


class _Fleet:
    """A client of a fleet in which other VMs have MAC addresses."""

    def __init__(self, *taken: str) -> None:
        self.taken = taken

    def create_vm(self, **fields: Any) -> dict[str, Any]:
        given = {"mac": fields.get("mac")}
        given |= {f"nics[{number}].mac": nic.get("mac") for number, nic in enumerate(fields.get("nics", ()))}
        for field, address in given.items():
            if address in self.taken:
                raise ApiError({"status": 409, "detail": f"another VM has {address}", "field": field})
        return {field: address for field, address in given.items() if address is not None}


ONE, TWO, THREE = (f"06:00:00:00:00:0{number}" for number in (1, 2, 3))
LAN, WAN = {"network": "lan"}, {"network": "wan"}


@pytest.mark.parametrize(
    ("own", "keep", "nics", "taken", "created"),
    [
        (True, None, (), (), {"mac": ONE}),
        (True, None, (), (ONE,), {}),
        (True, None, (LAN, WAN), (), {"nics[0].mac": ONE, "nics[1].mac": TWO}),
        (True, None, (LAN, WAN), (ONE,), {"nics[1].mac": TWO}),
        (True, None, ({**LAN, "mac": THREE}, WAN, LAN), (), {"nics[0].mac": THREE, "nics[1].mac": TWO}),
        (True, None, ({**LAN, "mac": THREE},), (THREE,), "nics[0].mac"),
        (True, True, (LAN, WAN), (TWO,), "nics[1].mac"),
        (True, False, (LAN, WAN), (), {}),
        (False, None, (), (), {}),
        (False, True, (), (), {"mac": ONE}),
    ],
)  # fmt: skip
def test_an_import_keeps_the_mac_addresses_that_it_is_asked_to_or_that_are_free(
    own: bool, keep: bool | None, nics: Any, taken: tuple[str, ...], created: Any
) -> None:
    archived = ArchivedVm("web", {}, ArchivedDisk((), 1), macs=(ONE, TWO), own=own)
    order = archive.ArchiveImport(nics=nics, keep_macs=keep)
    fields, client = archive._interfaces(archived, order), cast("Client", _Fleet(*taken))
    if isinstance(created, str):
        with pytest.raises(ApiError) as refused:
            archive._created(client, fields, 0.0, order, resumed=False)
        assert refused.value.problem["field"] == created
    else:
        assert archive._created(client, fields, 0.0, order, resumed=False) == created
