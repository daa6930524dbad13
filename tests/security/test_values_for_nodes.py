"""What nodes are told becomes rules of nftables, files of dnsmasq and cloud-init, options of QEMU and names of files:
every text in it has a form that none of them reads as anything else, or is listed here with what sees to that."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import pytest
from msgspec import inspect

from novacron.model import ipv6
from novacron.model.cloud_init import Seed, check_seed
from novacron.model.cpu import CpuModel
from novacron.model.errors import InvalidInput
from novacron.model.image import check_path, check_url
from novacron.model.ipv4 import check_interface
from novacron.model.network import (
    NetworkSpec,
    NicSpec,
    Protocol,
    RuleSpec,
    check_rule,
    check_spec,
    check_subnet,
    give,
)
from novacron.model.network import check_address as check_ipv4
from novacron.model.node import ImageInfo
from novacron.model.reachability import check_endpoint
from novacron.model.unreconciled import DescribedVolume, VmDescription, check_described
from novacron.model.vm import VmSpec, VmStatus, check_name
from novacron.wire import messages as wire

HOSTILE = "\0\n\r\t ,;\"'{}$`\\*?&|<>"
"""Not one of these may be in a text with a pattern, but for those of ``ALLOWED``."""
ALLOWED = {
    "CpuModel.vendor": " ",
    "VmSpec.smbios_manufacturer": " ",
    "VmSpec.smbios_serial": " ",
    "VmSpec.smbios_asset_tag": " ",
    "VmSpec.kernel_arguments": " ,;\"'{}$`\\*?&|<>",
}
"""The identification of a processor may have spaces. A guest's kernel gets its arguments from one option of QEMU, which
is taken as it is."""

OURS = {
    "Statement.vm", "Assignment.vm", "Assignment.project", "SnapshotWanted.id", "CloneOf.source", "VolumeAttached.id",
    "Task.migration", "ImportWanted.id", "ExportWanted.id", "ExportWanted.vm", "VolumeWanted.id", "VmInterface.vm",
    "ConsoleOpen.vm", "ProbeExpected.probe", "ProbeWanted.probe", "ProbeWanted.vm", "CopyExpected.copy",
    "CopyWanted.copy", "ImageInfo.digest", "Assignment.image_digest", "VolumeWanted.image_digest",
    "Revoked.keys[]", "NetworkOnNode.names[][0]", "NetworkOnNode.names6[][0]", "VmInterface.mac",
    "ReplicaSent.vm", "ReplicaKept.vm", "ReplicaKept.image_digest",
    "BackupWanted.id", "BackupWanted.vm", "BackupWanted.project", "DataKey.id", "VolumeAttached.encryption_key",
    "VolumeWanted.encryption_key",
    "Imports.unreadable[]", "Exports.unreadable[]", "Backups.unreadable[]", "Replicas.unreadable[]",
    "Replicas.unreadable_vms[]", "Statement.proof", "DatabaseMark.proof",
}  # fmt: skip
"""Ids, digests, proofs and MAC addresses that the control plane makes or has checked; traces besides."""
NAMES = {
    "Assignment.name", "CloneOf.source_name", "ImportSpec.name", "NetworkOnNode.name", "NetworkOnNode.names[][2]",
    "NetworkOnNode.names6[][2]",
    "Task.peer", "Peer.name", "ProbeExpected.peer", "ProbeWanted.peer", "CopyExpected.peer", "CopyWanted.peer",
    "Rename.name", "VolumeAttached.pool", "VolumeWanted.pool", "VolumeWanted.image", "BackupWanted.vm_name",
    "ReplicaSent.peer", "ReplicaKept.peer", "ReplicaKept.image",
}  # fmt: skip
"""Names of VMs, nodes, networks, images and pools: the API and ``check_described`` take no others."""
SHOWN = {
    "MachineLayout.qemu", "MachineLayout.machine", "MachineLayout.accelerator", "MachineLayout.devices[]",
    "ImportSpec.description", "Assignment.withheld", "ImageInfo.description", "ImageInfo.kind", "ImportSpec.sha256",
    "VmSpec.media_digests{key}", "VmSpec.media_digests{}",
}  # fmt: skip
"""Compared or shown to people; nothing is made of them."""
OWN = {"Assignment.passthrough[]"}
"""Devices of the node itself, as it reports them."""


class Checked(NamedTuple):
    """A text that a function brings into its canonical form. ``examples``: what comes in, and what is stored."""

    check: Callable[[str], str | None]
    examples: dict[str, str]
    refused: tuple[str, ...] = ()


def _rule(cidr: str) -> str | None:
    return check_rule(RuleSpec(cidr=cidr)).cidr


def _nameserver(text: str) -> str:
    check_spec(NetworkSpec(nameservers=(text,)))
    return text


def _seed(field: str, *, several: bool = False) -> Callable[[str], str]:
    def check(text: str) -> str:
        value = getattr(check_seed(msgspec.convert({field: [text] if several else text}, Seed)), field)
        return str(value[0] if several else value)

    return check


ADDRESSES = (
    "", "198.51.100.1\n", "198.51.100.1,1", " 198.51.100.1", "198.51.100.01", "198.51.100.1/24", "1", "x", "::1%\0",
    "\u0661.1.1.1", "198.51.100.1 }; add rule",
)  # fmt: skip
KEY = "ssh-ed25519 " + "A" * 68
CHECKED = {
    "VmSpec.address": Checked(
        check_interface, {"10.77.0.10/24": "10.77.0.10/24", "10.77.0.10/255.255.255.0": "10.77.0.10/24",
                        "10.77.0.10/0.0.0.255": "10.77.0.10/24"}, ("10.77.0.10", "10.77.0.10/24\n", *ADDRESSES[:5]),
    ),
    "NicSpec.address": Checked(
        lambda text: give("198.51.100.0/24", (), text), {"198.51.100.9": "198.51.100.9"}, ADDRESSES
    ),
    "NicSpec.address6": Checked(
        lambda text: ipv6.give("fd12:3456:789a::/64", "52:54:00:00:00:01", (), text),
        dict.fromkeys(("fd12:3456:789a::9", "FD12:3456:789A:0:0::0009"), "fd12:3456:789a::9"),
        ("fd12:3456:789a::9%eth0", "fd12:3456:789a::9\n", "fd12:3456:789a::9/64", "fd12:3456:789a::9,x", *ADDRESSES),
    ),
    "NetworkSpec.subnet6": Checked(
        ipv6.check_prefix,
        dict.fromkeys(("fd12:3456:789a::/64", "FD12:3456:789A:0::/64"), "fd12:3456:789a::/64"),
        ("fd12:3456:789a::/64\n", "fd12:3456:789a::1/64", "fd12:3456:789a::%eth0/64", *ADDRESSES),
    ),
    "NetworkSpec.subnet": Checked(
        lambda text: str(check_subnet(text)),
        dict.fromkeys(("10.20.0.0/24", "10.20.0.0/255.255.255.0", "10.20.0.0/0.0.0.255"), "10.20.0.0/24"),
        ("10.20.0.0/24\n", "10.20.0.0/24 ", "10.20.0.1/24", *ADDRESSES),
    ),
    "NetworkSpec.nameservers[]": Checked(_nameserver, {"192.0.2.53": "192.0.2.53"}, ADDRESSES),
    "Passing.cidrs[]": Checked(
        _rule,
        {"198.51.100.0/24": "198.51.100.0/24", "198.51.100.0/0.0.0.255": "198.51.100.0/24",
         "198.51.100.0/255.255.255.0": "198.51.100.0/24", "198.51.100.7": "198.51.100.7/32",
         "FD12:0::/64": "fd12::/64"},
        ("198.51.100.0/24 }", "198.51.100.0/24\n", "fd12::1/64", "fd12::%x/64",
         "198.51.100.7/24", *(text for text in ADDRESSES if text != "1")),
    ),
    **{
        path: Checked(lambda text: str(check_ipv4(text)), {"198.51.100.9": "198.51.100.9"}, ADDRESSES)
        for path in (
            "NetworkOnNode.names[][1]", "VmInterface.address", "NetworkOnNode.floating[][0]",
            "NetworkOnNode.floating[][1]", "Entrance.address", "Entrance.guest",
        )
    },
    **{
        path: Checked(
            lambda text: str(ipv6.check_address(text)), {"FD12:0::9": "fd12::9"}, ("fd12::9%x", "fd12::9\n", *ADDRESSES)
        )
        for path in ("NetworkOnNode.names6[][1]", "VmInterface.address6")
    },
    "StoredSeed.gateway": Checked(
        _seed("gateway"), {"10.0.0.1": "10.0.0.1", "2001:DB8:0::1": "2001:db8::1"}, ADDRESSES[1:]
    ),
    "StoredSeed.nameservers[]": Checked(
        _seed("nameservers", several=True), {"10.0.0.1": "10.0.0.1", "2001:DB8:0::1": "2001:db8::1"}, ADDRESSES
    ),
    "StoredSeed.ssh_keys[]": Checked(
        _seed("ssh_keys", several=True), {KEY: KEY, f"{KEY} ann": f"{KEY} ann"}, ("", f"{KEY}\n", f"{KEY}\n{KEY}")
    ),
    "StoredSeed.user_data": Checked(_seed("user_data"), {"#!/bin/sh\n": "#!/bin/sh\n"}, ("anything else",)),
    "ImportSpec.location": Checked(
        lambda text: check_url(text) if ":" in text else check_path(text),
        {"https://example.net/disk": "https://example.net/disk", "a/disk": "a/disk"},
        ("file:///etc/shadow", "https://u:p@example.net/", "https://example.net/\n", "/etc/shadow", "../x", ""),
    ),
    **{
        path: Checked(
            check_endpoint, {"host-b:7445": "host-b:7445", "[2001:db8::1]:7445": "[2001:db8::1]:7445"},
            ("", "host-b", "host-b:0", "host b:1", "host-b:7445\n", "host-b:1 ", "a;b:1"),
        )
        for path in ("Task.endpoint", "Task.warm", "Peer.endpoint", "ProbeWanted.endpoint", "CopyWanted.endpoint",
                     "ReplicaSent.endpoint",
                     "NetworkPeer.host", "Networks.hosts[]")
    },
}  # fmt: skip
KEYS = {"NetworkPeer.key"}
"""Of WireGuard: base64, checked by ``check_reachable``."""


def texts(type_: inspect.Type, path: str, seen: set[type]) -> Iterator[tuple[str, inspect.StrType]]:
    """Yield every text in a type, with its path from the struct that it is in."""
    match type_:
        case inspect.StructType() if type_.cls not in seen:
            seen.add(type_.cls)
            for field in type_.fields:
                yield from texts(field.type, f"{type_.cls.__name__}.{field.name}", seen)
        case inspect.NamedTupleType():
            for field in type_.fields:
                yield from texts(field.type, f"{path}.{field.name}", seen)
        case inspect.UnionType():
            for one in type_.types:
                yield from texts(one, path, seen)
        case inspect.VarTupleType() | inspect.ListType() | inspect.SetType() | inspect.FrozenSetType():
            yield from texts(type_.item_type, f"{path}[]", seen)
        case inspect.TupleType():
            for number, one in enumerate(type_.item_types):
                yield from texts(one, f"{path}[{number}]", seen)
        case inspect.DictType():
            yield from texts(type_.key_type, f"{path}{{key}}", seen)
            yield from texts(type_.value_type, f"{path}{{}}", seen)
        case inspect.Metadata():
            yield from texts(type_.type, path, seen)
        case inspect.StrType():
            yield path, type_


TEXTS = dict(texts(inspect.type_info(wire.FromServer), "", set()))
WITHOUT_PATTERN = {path for path, text in TEXTS.items() if text.pattern is None and not path.endswith(".trace")}


def test_every_text_that_a_node_is_told_has_a_pattern_or_somebody_who_checks_it() -> None:
    listed = OURS | NAMES | SHOWN | OWN | KEYS | CHECKED.keys()
    assert WITHOUT_PATTERN - listed == set(), "give it a pattern, or list what checks it"
    assert listed - WITHOUT_PATTERN == set(), "these are gone, or have a pattern by now"


@pytest.mark.parametrize("path", sorted(TEXTS.keys() - WITHOUT_PATTERN))
def test_no_pattern_takes_what_another_program_would_read_as_more_than_a_value(path: str) -> None:
    pattern = TEXTS[path].pattern
    if pattern is None:  # a trace
        return
    for character in set(HOSTILE) - set(ALLOWED.get(path, "")):
        for text in (character, f"a{character}", f"a{character}b", f"52:54:00:aa:bb:cc{character}"):
            assert re.search(pattern, text) is None, f"{pattern} takes {text!r}"


@pytest.mark.parametrize("path", sorted(CHECKED))
def test_values_are_stored_in_canonical_form_or_refused(path: str) -> None:
    check, examples, refused = CHECKED[path]
    for text, canonical in examples.items():
        assert check(text) == canonical
        assert check(canonical) == canonical, "what is canonical stays so"
    for text in refused:
        with pytest.raises((InvalidInput, msgspec.ValidationError)):
            raise AssertionError(f"{path} takes {text!r} as {check(text)!r}")


def test_ports_of_rules_are_stored_in_canonical_form() -> None:
    rules = {"080": "80", "00443-443": "443", "08000-8099": "8000-8099", "1-65535": "1-65535"}
    for text, canonical in rules.items():
        assert check_rule(RuleSpec(protocol=Protocol.TCP, ports=text)).ports == canonical
    for name in ("x\n", "-x", "x.y", "", "../x", "X"):
        with pytest.raises(InvalidInput):
            check_name(name)


@pytest.mark.parametrize(
    "report",
    [
        {"machine": "pc-q35-7.2,dumpdtb=/etc/cron.d/x"},
        {"machine": "pc,kernel=/etc/shadow"},
        {"cpu": {"vendor": "x,enforce=off", "family": 1, "model": 1, "stepping": 1, "flags": []}},
        {"cpu": {"vendor": "GenuineIntel", "family": 1, "model": 1, "stepping": 1, "flags": ["avx=on,-object x"]}},
    ],
)
def test_what_a_node_reports_of_a_vm_is_no_option_of_another_nodes_qemu(report: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(report, VmStatus)


def test_names_of_machines_and_processors_as_they_are_are_taken() -> None:
    for machine in ("", "pc-q35-7.2", "pc-i440fx-10.0", "pc-q35-rhel9.4.0", "virt-7.2+x"):
        assert msgspec.convert({"machine": machine}, VmStatus).machine == machine
    flags = ["sse4.1", "sse4_2", "3dnowext", "hv-relaxed", "kvm_pv_eoi", "avx512-vbmi2", "vmx-ept-1gb"]
    for vendor in ("GenuineIntel", "AuthenticAMD", "  Shanghai  ", "HygonGenuine", "Genuine RDC"):
        cpu = {"vendor": vendor, "family": 6, "model": 1, "stepping": 0, "flags": flags}
        assert msgspec.convert(cpu, CpuModel).vendor == vendor


@pytest.mark.parametrize("name", ["../../etc", "a/b", "..", "a\n", "", "-x"])
def test_a_node_names_no_directory_of_another_with_an_image(name: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": name, "digest": "x", "size_bytes": 1, "kind": "disk"}, ImageInfo)


WELL = VmDescription("web", "project-a", VmSpec(image="tiny"), (DescribedVolume("vol-a", "local", 1, 64),))


@pytest.mark.parametrize(
    ("vm", "described"),
    [
        ("../../etc", WELL),
        ("vm-a", msgspec.structs.replace(WELL, name="web\naddress=/#/198.51.100.1")),
        ("vm-a", msgspec.structs.replace(WELL, volumes=(DescribedVolume("../../etc/passwd", "local", 1, 64),))),
        ("vm-a", msgspec.structs.replace(WELL, volumes=(DescribedVolume("vol-a", "../x", 1, 64),))),
        ("vm-a", msgspec.structs.replace(WELL, spec=VmSpec(image="tiny", address="10.0.0.1/0.0.0.255"))),
        ("vm-a", msgspec.structs.replace(WELL, spec=VmSpec(image="tiny", nics=(NicSpec("lan", "10.0.0.1\nx"),)))),
    ],
)
def test_a_vm_that_is_adopted_as_its_node_describes_it_names_nothing_else(vm: str, described: VmDescription) -> None:
    check_described("vm-a", WELL)
    with pytest.raises(InvalidInput):
        check_described(vm, described)
