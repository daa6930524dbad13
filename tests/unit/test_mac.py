"""MAC addresses as values: which are made, which may be chosen, and how a VM's interfaces get theirs."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        ("00:00:00:00:00:00", "can't be the address"),
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
    with pytest.raises(InvalidInput, match="has its MAC addresses in them") as beside:
        macs.assign(VmSpec(image="tiny", nics=nics, mac="06:00:00:00:00:01"))
    assert beside.value.field == "mac"


def test_a_vm_created_before_mac_addresses_were_assigned_keeps_the_one_of_its_id() -> None:
    old, nics = VmSpec(image="tiny"), (NicSpec("lan"), NicSpec("wan"))
    assert with_mac_addresses("vm-abc", old).mac == mac.from_id("vm-abc") == "52:54:00:d9:3d:09"
    told = with_mac_addresses("vm-abc", VmSpec(image="tiny", nics=nics))
    assert [nic.mac for nic in told.nics] == [mac.from_id("vm-abc"), mac.from_id("vm-abc", 1)]
