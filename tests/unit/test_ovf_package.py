"""Files of OVF packages: checksums of every kind, disks in pieces, and names that lead elsewhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from novacron.client.errors import ArchiveError
from novacron.client.ovf import OvfDisk
from novacron.client.ovf_package import (
    Checksum,
    DiskPart,
    check_descriptor,
    check_piece,
    checksums,
    disk_pieces,
    files_beside,
)


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
def test_a_checksum_of_each_kind_is_checked(tmp_path: Path, algorithm: str) -> None:
    file = tmp_path / "disk"
    file.write_bytes(b"before" + b"disk" + b"after")
    right = hashlib.new(algorithm, b"disk").hexdigest()
    line = f"{algorithm.upper()}(my disk (1).vmdk)= {right}\r\n\r\n".encode()
    assert checksums(line) == {"my disk (1).vmdk": Checksum(algorithm, right)}
    check_piece(DiskPart(file, 6, 4, Checksum(algorithm, right)))
    with pytest.raises(ArchiveError, match="checksum is not the one"):
        check_piece(DiskPart(file, 5, 4, Checksum(algorithm, right)))
    check_descriptor("vm.ovf", b"disk", {"vm.ovf": Checksum(algorithm, right)})
    with pytest.raises(ArchiveError, match=r"vm.ovf is damaged"):
        check_descriptor("vm.ovf", b"disc", {"vm.ovf": Checksum(algorithm, right)})


@pytest.mark.parametrize("line", ["MD5(disk)= 00", "SHA3(disk)= 00", "nonsense", "SHA256(disk)= xyz", "SHA256 disk 00"])
def test_an_uncheckable_checksum_does_not_pass(line: str) -> None:
    with pytest.raises(ArchiveError, match="can't be checked"):
        checksums(line.encode())


def test_a_chunked_disk_is_joined_in_order_and_must_be_complete(tmp_path: Path) -> None:
    disk = OvfDisk("a.vmdk", 0, chunk_bytes=10)
    files = {f"a.vmdk.{number:09d}": DiskPart(tmp_path, number, size) for number, size in enumerate((10, 10, 3))}
    assert [piece.offset for piece in disk_pieces(disk, files, tmp_path)] == [0, 1, 2]
    short = files | {"a.vmdk.000000001": DiskPart(tmp_path, 1, 9)}
    with pytest.raises(ArchiveError, match=r"piece 1 .* cut off"):
        disk_pieces(disk, short, tmp_path)
    with pytest.raises(ArchiveError, match="lacks the pieces"):
        disk_pieces(disk, {}, tmp_path)
    with pytest.raises(ArchiveError, match="lacks the disk"):
        disk_pieces(OvfDisk("b.vmdk", 0), files, tmp_path)
    assert disk_pieces(OvfDisk(None, 5), files, tmp_path) == ()


@pytest.mark.parametrize(
    "href", ["../secret", "/etc/shadow", "..", "a/../../b", "a//b", "https://example.net/x", "a\\b", "a\0b"]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, href: str) -> None:
    with pytest.raises(ArchiveError, match="is not beside"):
        files_beside(tmp_path / "vm.ovf", (OvfDisk(href, 0),), {})


def test_links_beside_a_descriptor_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.vmdk").symlink_to("/etc/shadow")
    assert files_beside(tmp_path / "vm.ovf", (OvfDisk("a.vmdk", 0),), {}) == {}


def test_disks_in_folders_below_the_descriptor_are_taken_and_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disks").mkdir()
    (tmp_path / "disks" / "a.vmdk").write_bytes(b"disk")
    (tmp_path / "linked").symlink_to("disks")
    there, linked = OvfDisk("disks/a.vmdk", 0), OvfDisk("linked/a.vmdk", 0)
    files = files_beside(tmp_path / "vm.ovf", (there, linked, OvfDisk("none/a.vmdk", 0)), {})
    assert files == {"disks/a.vmdk": DiskPart(tmp_path / "disks" / "a.vmdk", 0, 4)}
    assert disk_pieces(there, files, tmp_path) == (files["disks/a.vmdk"],)


@pytest.mark.parametrize("written", ["my disk%.vmdk", "my%20disk%25.vmdk"])
def test_a_disk_is_found_by_its_name_and_by_its_url(tmp_path: Path, written: str) -> None:
    (tmp_path / "my disk%.vmdk").write_bytes(b"disk")
    disk = OvfDisk(written, 0)
    files = files_beside(tmp_path / "vm.ovf", (disk,), {})
    assert disk_pieces(disk, files, tmp_path)[0].file == tmp_path / "my disk%.vmdk"


def test_an_encoded_name_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    package = tmp_path / "package"
    package.mkdir()
    assert files_beside(package / "vm.ovf", (OvfDisk("%2e%2e/secret", 0), OvfDisk("..%2fsecret", 0)), {}) == {}
