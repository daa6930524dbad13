"""OVF descriptors of VMware, VirtualBox and others: taken right, refused with the reason, and honest about the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.client.errors import ArchiveError
from novacron.client.ovf import OvfDisk, parse, plain_name
from tests.support.ovf import CD, CPUS, OVF_1, SCSI, descriptor, drive, memory


@pytest.mark.parametrize(
    "namespace", [OVF_1, "http://schemas.dmtf.org/ovf/envelope/2", "http://www.vmware.com/schema/ovf/1/envelope"]
)
def test_a_vm_is_read_from_each_version(namespace: str) -> None:
    machine = parse(descriptor(CPUS + memory("512", "MegaBytes") + drive("v1"), namespace=namespace))
    assert (machine.name, machine.fields) == ("web", {"vcpus": 2, "memory_mib": 512})
    assert machine.disks == (OvfDisk("one.vmdk", 8 << 30),)


@pytest.mark.parametrize(
    ("quantity", "units", "mib"),
    [
        ("512", "byte * 2^20", 512), ("2", "GigaBytes", 2048), ("2", "byte*2^30", 2048), ("524288", "KiloBytes", 512),
        ("512", "", 512), ("1", "GB", 1024), ("536870912", "byte", 512), ("512", "byte * 1048576", 512),
    ],
)  # fmt: skip
def test_memory_is_read_in_every_unit(quantity: str, units: str, mib: int) -> None:
    assert parse(descriptor(memory(quantity, units) + drive("v1"))).fields["memory_mib"] == mib


@pytest.mark.parametrize("units", ["furlongs", "byte * 2^99", "hertz * 10^6", "byte * 0"])
def test_an_unknown_unit_is_refused(units: str) -> None:
    with pytest.raises(ArchiveError, match="unit"):
        parse(descriptor(memory("1", units) + drive("v1")))


def test_the_default_configuration_is_used_and_not_the_last() -> None:
    head = (
        '<DeploymentOptionSection><Configuration o:id="small"/><Configuration o:id="medium" o:default="true"/>'
        '<Configuration o:id="large"/></DeploymentOptionSection>'
    )
    sizes = {"small": 1024, "medium": 4096, "large": 24576}
    items = "".join(memory(str(size), "MegaBytes", f'o:configuration="{id}"') for id, size in sizes.items())
    machine = parse(descriptor(CPUS + items + drive("v1"), head=head))
    assert machine.fields == {"vcpus": 2, "memory_mib": 4096}
    assert any("2 of its 3 configurations" in text for text in machine.dropped)
    base = memory("8192", "MegaBytes") + memory("1024", "MegaBytes", 'o:configuration="small"')
    assert parse(descriptor(base + drive("v1"), head=head)).fields["memory_mib"] == 8192
    first = head.replace(' o:default="true"', "")
    assert parse(descriptor(items + drive("v1"), head=first)).fields["memory_mib"] == 1024


def test_bounds_of_a_value_are_not_values() -> None:
    items = "".join(memory(size, "MB", f'o:bound="{bound}"') for size, bound in (("64", "min"), ("4096", "max")))
    assert parse(descriptor(memory("512", "MB") + items + drive("v1"))).fields["memory_mib"] == 512


def test_disks_come_in_the_order_in_which_they_are_attached() -> None:
    machine = parse(descriptor(SCSI + drive("v3", 2) + drive("v2", 1) + drive("v1", 0)))
    assert machine.disks == (
        OvfDisk("one.vmdk", 8 << 30), OvfDisk("two.vmdk", 1_000_000, chunk_bytes=1000), OvfDisk(None, 16 << 30),
    )  # fmt: skip
    assert parse(descriptor(drive("f1", kind="file"))).disks == (OvfDisk("one.vmdk", 0),)


@pytest.mark.parametrize(
    ("hardware", "options", "why"),
    [
        (CPUS, {}, "no disk"),
        (drive("v9"), {}, "does not describe"),
        (drive("v3"), {}, "first disk of the VM is blank"),
        (drive("v1"), {"disks": '<Disk o:diskId="v1" o:fileRef="f9" o:capacity="1"/>'}, "does not name"),
        (drive("v1"), {"disks": '<Disk o:diskId="v1" o:fileRef="f1" o:capacity="1" o:parentRef="v0"/>'}, "a parent"),
        (drive("v1"), {"disks": '<Disk o:diskId="v1" o:fileRef="f1" o:capacity="much"/>'}, "not a number"),
        (memory("lots", "MB") + drive("v1"), {}, "not a number"),
        (drive("v1"), {"files": '<File o:id="f1" o:href="x" o:chunkSize="0"/>'}, "pieces"),
    ],
)
def test_a_descriptor_that_cannot_be_imported_faithfully_is_refused(
    hardware: str, options: dict[str, str], why: str
) -> None:
    with pytest.raises(ArchiveError, match=why):
        parse(descriptor(hardware, **options))


def test_two_vms_entities_and_nonsense_are_refused() -> None:
    two = descriptor(drive("v1")).replace(b"</VirtualSystem>", b"</VirtualSystem><VirtualSystem/>")
    entity = descriptor(drive("v1")).replace(b"<Envelope", b'<!DOCTYPE x [<!ENTITY a "b">]><Envelope', 1)
    for text, why in (
        (two, "holds 2 VMs"), (entity, "entities"), (b"<html/>", "not an OVF file"), (b"", "no XML"),
        (b"\xff\xfe", "no XML"),
    ):  # fmt: skip
        with pytest.raises(ArchiveError, match=why):
            parse(text)


def test_ignored_parts_of_a_descriptor_are_listed() -> None:
    nic = (
        "<Item><r:Address>00:50:56:aa:bb:cc</r:Address><r:Connection>VM Network</r:Connection><r:ElementName>nic 1"
        "</r:ElementName><r:InstanceID>7</r:InstanceID><r:ResourceSubType>VmxNet3</r:ResourceSubType>"
        "<r:ResourceType>10</r:ResourceType></Item>"
    )
    dropped = parse(descriptor(nic + CD + drive("v1"), head="<EulaSection/>")).dropped
    assert dropped == (
        "interface 'nic 1' (VmxNet3, MAC 00:50:56:aa:bb:cc, network VM Network): give the VM one with --network, "
        "and its address with --keep-mac",
        "a CD drive 'CD'",
        "1 properties for its guest (size)",
        "its license agreement: read it in the descriptor",
        "1 files of the package (two.vmdk)",
    )


def hardware(kind: str, name: str, model: str = "") -> str:
    return (
        f"<Item><r:ElementName>{name}</r:ElementName><r:InstanceID>{name}</r:InstanceID>"
        f"<r:ResourceSubType>{model}</r:ResourceSubType><r:ResourceType>{kind}</r:ResourceType></Item>"
    )


def test_no_hardware_is_dropped_without_a_word() -> None:
    kinds = {str(kind): f"part {kind}" for kind in range(40)} | {"": "part of no kind"}
    items = "".join(hardware(kind, name) for kind, name in kinds.items() if kind not in ("3", "4", "17"))
    dropped = "; ".join(parse(descriptor(items + drive("v1"))).dropped)
    taken = {"3", "4", "5", "6", "17", "20"}
    assert [name for kind, name in kinds.items() if f"{name!r}" not in dropped] == [kinds[kind] for kind in sorted(
        taken, key=int
    )]  # fmt: skip
    for model, said in (
        ("vmware.vmci", "hardware 'x' (vmware.vmci)"),
        ("vmware.vtpm", "a TPM 'x', and the keys in it"),
    ):
        assert said in parse(descriptor(hardware("1", "x", model) + drive("v1"))).dropped


def test_sections_that_ask_for_what_is_not_here_are_named() -> None:
    head = '<AnnotationSection/><BootOrderSection/><Section xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
    head += 'xsi:type="o:InstallSection_Type"/><NetworkSection/>'
    dropped = parse(descriptor(drive("v1") + drive("v2"), head=head)).dropped
    assert "its annotation: read it in the descriptor" in dropped
    assert "what its sections BootOrderSection, InstallSection ask for: nothing here does that" in dropped


def test_a_disk_with_a_file_needs_no_capacity_and_a_blank_one_does() -> None:
    assert parse(descriptor(drive("v1"), disks='<Disk o:diskId="v1" o:fileRef="f1"/>')).disks[0].size_bytes == 0
    blank = '<Disk o:diskId="v1" o:fileRef="f1"/><Disk o:diskId="v2"/>'
    with pytest.raises(ArchiveError, match="capacity"):
        parse(descriptor(SCSI + drive("v1") + drive("v2", 1), disks=blank))
    with pytest.raises(ArchiveError, match="no HostResource"):
        parse(descriptor(drive("v1").replace("<r:HostResource>ovf:/disk/v1</r:HostResource>", "")))


def test_a_property_has_its_value_in_the_default_configuration() -> None:
    configurations = '<Configuration o:id="s"/><Configuration o:id="l" o:default="1"/>'
    head = f"<DeploymentOptionSection>{configurations}</DeploymentOptionSection>"
    tail = (
        '<ProductSection><Property o:key="ram" o:value="512"><Value o:configuration="s" o:value="256"/>'
        '<Value o:configuration="l" o:value="2048"/></Property></ProductSection>'
    )
    text = descriptor(memory("${ram}", "MegaBytes") + drive("v1"), head=head, tail=tail)
    assert parse(text).fields["memory_mib"] == 2048
    assert parse(text.replace(head.encode(), b"")).fields["memory_mib"] == 512


@pytest.mark.parametrize(
    "section",
    [
        '<OperatingSystemSection vmw:osType="windows9_64Guest"/>',
        "<OperatingSystemSection><OSType>Windows2016_64</OSType></OperatingSystemSection>",
        "<OperatingSystemSection><Description>Microsoft Windows 10 (64-bit)</Description></OperatingSystemSection>",
    ],
)
def test_a_windows_guest_gets_devices_that_it_has_drivers_for(section: str) -> None:
    fields = parse(descriptor(drive("v1"), tail=section)).fields
    assert fields == {"os": "windows10", "disk_bus": "sata", "nic_model": "e1000", "firmware": "bios"}
    efi = section + '<vmw:Config vmw:key="firmware" vmw:value="efi"/>'
    assert parse(descriptor(drive("v1"), tail=efi)).fields["firmware"] == "uefi"
    assert "os" not in parse(descriptor(drive("v1"), tail=section.replace("indows", "ubuntu"))).fields


def test_firmware_is_read_as_vmware_and_virtualbox_write_it() -> None:
    vmware = '<vmw:Config vmw:key="firmware" vmw:value="efi"/>'
    secure = '<vmw:Config vmw:key="bootOptions.efiSecureBootEnabled" vmw:value="true"/>'
    virtualbox = '<Machine><Hardware><Firmware type="EFI"/></Hardware></Machine>'
    for tail, firmware in ((vmware, "uefi"), (vmware + secure, "uefi-secure"), (virtualbox, "uefi"), (secure, None)):
        assert parse(descriptor(drive("v1"), tail=tail)).fields.get("firmware") == firmware


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("Störung 2", "storung-2"),
        ("Straße", "strasse"),
        ("Nostalgia", "nostalgia"),
        ("东京", ""),
        ("--a--", "a"),
        ("x" * 80, "x" * 63),
    ],
)
def test_a_descriptors_name_becomes_a_valid_vm_name(name: str, plain: str) -> None:
    assert plain_name(name) == plain


@given(st.binary(max_size=200), st.integers(0, 2000))
def test_a_damaged_descriptor_is_read_or_refused_and_never_crashes(noise: bytes, at: int) -> None:
    text = bytearray(descriptor(CPUS + SCSI + memory("1", "GB") + drive("v1")))
    text[at : at + len(noise)] = noise
    try:
        assert parse(bytes(text)).disks
    except ArchiveError as error:
        assert str(error)
