"""What flavors and templates set of a new VM, and how they add up."""

from __future__ import annotations

import msgspec
import pytest

from novacron.model.network import NicSpec
from novacron.model.vm import Firmware, Power, VmFields, VmSpec
from novacron.model.vm_templates import FlavorSpec, TemplateSpec, merged, template_of

OWN = frozenset({"address", "mac", "power", "boot_once", "smbios_serial", "smbios_asset_tag"})
"""Fields of a VM that no template has: each VM has its own."""


def test_a_template_can_set_each_field_of_a_vm_but_its_own() -> None:
    assert set(TemplateSpec.__struct_fields__) == set(VmFields.__struct_fields__) - OWN


def test_later_layers_count_and_labels_add_up() -> None:
    template = msgspec.convert(
        {"image": "debian", "vcpus": 1, "tpm": True, "placement": {"labels": {"disk": "ssd"}, "spread": "web"}},
        TemplateSpec,
    )
    flavor = FlavorSpec(4, 8192, labels={"cpu": "fast"})
    asked = {"name": "web", "vcpus": 8, "placement": {"anti_affinity": "web"}}
    fields = merged(template.fields(), flavor.fields(), asked)
    assert (fields["image"], fields["tpm"], fields["memory_mib"], fields["vcpus"]) == ("debian", True, 8192, 8)
    assert fields["placement"]["labels"] == {"disk": "ssd", "cpu": "fast"}
    assert fields["placement"]["anti_affinity"] == "web" and fields["placement"]["spread"] == "web"
    assert "disk_mib" not in fields, "that of the image"
    assert merged(asked) == asked, "without any, a VM is what was asked for"


def test_a_template_of_a_vm_has_nothing_that_is_that_vms_own() -> None:
    nic = NicSpec("lan", "10.0.0.7", "52:54:00:00:00:01", ("web",))
    vm = VmSpec(image="tiny", nics=(nic,), firmware=Firmware.UEFI, power=Power.STOPPED, starts=3, hardware_renewals=2)
    fields = template_of(vm).fields()
    assert list(fields["nics"]) == [{"network": "lan", "groups": ("web",)}] and fields["firmware"] == "uefi"
    assert not fields.keys() & {*OWN, "starts", "hardware_renewals", "encryption_key"}


@pytest.mark.parametrize(
    "spec",
    [{"address": "10.0.0.1/24"}, {"mac": "52:54:00:00:00:01"}, {"power": "running"}, {"starts": 1}, {"vcpus": 0},
     {"nics": [{"network": "lan", "mac": "52:54:00:00:00:01"}]}, {"image": "../x"}, {"machine": "pc-q35-7.2,smm=off"}],
)  # fmt: skip
def test_a_template_with_an_identity_or_a_hostile_value_is_refused(spec: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(spec, TemplateSpec)
