"""Files of OVF packages: checksums of every kind, disks in pieces, and names that lead elsewhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from novacron.client.errors import ArchiveError
from novacron.client.ovf import OvfDisk
from novacron.client.ovf_manifest import Checksum, PackageManifest, name_beside, name_in_archive, parse
from novacron.client.ovf_package import DiskPart, check_piece, disk_pieces, files_beside

NFC, NFD = "St\u00f6rung.vmdk", "Sto\u0308rung.vmdk"
SUM = Checksum("sha256", hashlib.sha256(b"disk").hexdigest())


def manifest_of(*names: str, checksum: Checksum = SUM) -> PackageManifest:
    lines = (f"{checksum.algorithm.upper()}({name})= {checksum.hexadecimal}\n" for name in names)
    return parse("".join(lines).encode())


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
def test_a_checksum_of_each_kind_is_checked(tmp_path: Path, algorithm: str) -> None:
    file = tmp_path / "disk"
    file.write_bytes(b"before" + b"disk" + b"after")
    right = hashlib.new(algorithm, b"disk").hexdigest()
    line = f"{algorithm.upper()}(my disk (1).vmdk)= {right}\r\n\r\n".encode()
    assert parse(line).of("my disk (1).vmdk") == Checksum(algorithm, right)
    check_piece(DiskPart(file, 6, 4, Checksum(algorithm, right)))
    with pytest.raises(ArchiveError, match="checksum is not the one"):
        check_piece(DiskPart(file, 5, 4, Checksum(algorithm, right)))
    manifest = manifest_of("vm.ovf", checksum=Checksum(algorithm, right))
    manifest.check_descriptor("vm.ovf", b"disk")
    with pytest.raises(ArchiveError, match=r"vm.ovf is damaged"):
        manifest.check_descriptor("vm.ovf", b"disc")
    with pytest.raises(ArchiveError, match=r"is that of 'vm.ovf', not of 'other.ovf'"):
        manifest.check_descriptor("other.ovf", b"disk")
    manifest_of("disk.vmdk").check_descriptor("vm.ovf", b"anything")


@pytest.mark.parametrize("line", ["MD5(disk)= 00", "SHA3(disk)= 00", "nonsense", "SHA256(disk)= xyz", "SHA256 disk 00"])
def test_an_uncheckable_checksum_does_not_pass(line: str) -> None:
    with pytest.raises(ArchiveError, match="can't be checked"):
        parse(line.encode())


def test_a_chunked_disk_is_joined_in_order_and_must_be_complete(tmp_path: Path) -> None:
    disk = OvfDisk("a.vmdk", 0, chunk_bytes=10)
    files = {f"a.vmdk.{number:09d}": DiskPart(tmp_path, number, size) for number, size in enumerate((10, 10, 3))}
    assert [piece.offset for piece in disk_pieces(disk, files, tmp_path, None)] == [0, 1, 2]
    short = files | {"a.vmdk.000000001": DiskPart(tmp_path, 1, 9)}
    with pytest.raises(ArchiveError, match=r"piece 1 .* cut off"):
        disk_pieces(disk, short, tmp_path, None)
    without_one = {name: part for name, part in files.items() if not name.endswith("1")}
    with pytest.raises(ArchiveError, match=r"lacks the piece 'a.vmdk.000000001'"):
        disk_pieces(disk, without_one, tmp_path, None)
    with pytest.raises(ArchiveError, match="lacks the pieces"):
        disk_pieces(disk, {}, tmp_path, None)
    with pytest.raises(ArchiveError, match="lacks the disk"):
        disk_pieces(OvfDisk("b.vmdk", 0), files, tmp_path, None)
    assert disk_pieces(OvfDisk(None, 5), files, tmp_path, None) == ()


@pytest.mark.parametrize(
    "href", ["../secret", "/etc/shadow", "..", "a/../../b", "a//b", "https://example.net/x", "a\\b", "a\0b"]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, href: str) -> None:
    with pytest.raises(ArchiveError, match="was not found next to"):
        files_beside(tmp_path / "vm.ovf", (OvfDisk(href, 0),), None)


def test_links_beside_a_descriptor_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.vmdk").symlink_to("/etc/shadow")
    assert files_beside(tmp_path / "vm.ovf", (OvfDisk("a.vmdk", 0),), None) == {}


def test_disks_in_folders_below_the_descriptor_are_taken_and_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disks").mkdir()
    (tmp_path / "disks" / "a.vmdk").write_bytes(b"disk")
    (tmp_path / "linked").symlink_to("disks")
    there, linked = OvfDisk("disks/a.vmdk", 0), OvfDisk("linked/a.vmdk", 0)
    files = files_beside(tmp_path / "vm.ovf", (there, linked, OvfDisk("none/a.vmdk", 0)), None)
    assert files == {"disks/a.vmdk": DiskPart(tmp_path / "disks" / "a.vmdk", 0, 4)}
    assert disk_pieces(there, files, tmp_path, None) == (files["disks/a.vmdk"],)


@pytest.mark.parametrize("written", ["my disk%.vmdk", "my%20disk%25.vmdk"])
def test_a_disk_is_found_by_its_name_and_by_its_url(tmp_path: Path, written: str) -> None:
    (tmp_path / "my disk%.vmdk").write_bytes(b"disk")
    disk = OvfDisk(written, 0)
    files = files_beside(tmp_path / "vm.ovf", (disk,), None)
    assert disk_pieces(disk, files, tmp_path, None)[0].file == tmp_path / "my disk%.vmdk"


def test_an_encoded_name_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    package = tmp_path / "package"
    package.mkdir()
    assert files_beside(package / "vm.ovf", (OvfDisk("%2e%2e/secret", 0), OvfDisk("..%2fsecret", 0)), None) == {}


@pytest.mark.parametrize("written", ["my disk.vmdk", "./my disk.vmdk", "my%20disk.vmdk", ".//my%20disk.vmdk"])
@pytest.mark.parametrize("file", ["my disk.vmdk", "./my disk.vmdk", "my%20disk.vmdk"])
def test_a_manifest_names_files_however_they_are_written(written: str, file: str) -> None:
    assert manifest_of(written).of(file) == SUM
    assert manifest_of(written).of("my disk") is None


@pytest.mark.parametrize(("written", "file"), [(NFC, NFD), (NFD, NFC)])
def test_names_with_accents_are_the_same_composed_and_decomposed(tmp_path: Path, written: str, file: str) -> None:
    (tmp_path / file).write_bytes(b"disk")
    disk = OvfDisk(written, 0)
    (piece,) = disk_pieces(disk, files_beside(tmp_path / "vm.ovf", (disk,), manifest_of(written)), tmp_path, None)
    assert piece == DiskPart(tmp_path / file, 0, 4, SUM)


def test_a_disk_that_the_manifest_does_not_name_is_refused(tmp_path: Path) -> None:
    files = {"a.vmdk": DiskPart(tmp_path, 0, 4), "b.vmdk": DiskPart(tmp_path, 0, 4, SUM)}
    with pytest.raises(ArchiveError, match=r"manifest of .* does not name 'a.vmdk'"):
        disk_pieces(OvfDisk("a.vmdk", 0), files, tmp_path, manifest_of("vm.ovf", "b.vmdk"))
    with pytest.raises(ArchiveError, match="does not name"):
        disk_pieces(OvfDisk("a.vmdk", 0), files, tmp_path, parse(b""))
    assert disk_pieces(OvfDisk("b.vmdk", 0), files, tmp_path, manifest_of("vm.ovf", "b.vmdk", "unused.iso"))


@pytest.mark.parametrize("named", ["a.vmdk.000000002", "./a.vmdk.000000002"])
def test_a_missing_last_piece_is_found_by_manifest_and_size(tmp_path: Path, named: str) -> None:
    disk = OvfDisk("a.vmdk", 0, chunk_bytes=10)
    files = {f"a.vmdk.{number:09d}": DiskPart(tmp_path, number, 10, SUM) for number in range(2)}
    assert len(disk_pieces(disk, files, tmp_path, manifest_of(*files))) == 2
    with pytest.raises(ArchiveError, match=r"lacks a piece .* names: a.vmdk.000000002"):
        disk_pieces(disk, files, tmp_path, manifest_of(*files, named))
    with pytest.raises(ArchiveError, match=r"cut off: it has 20 bytes, and the descriptor says 23"):
        disk_pieces(disk._replace(file_bytes=23), files, tmp_path, manifest_of(*files))


def test_a_file_shorter_than_its_descriptor_says_is_refused_unless_its_checksum_is_right(tmp_path: Path) -> None:
    disk = OvfDisk("a.vmdk", 0, file_bytes=5)
    with pytest.raises(ArchiveError, match=r"cut off: it has 4 bytes, and the descriptor says 5 \(ovf:size\)"):
        disk_pieces(disk, {"a.vmdk": DiskPart(tmp_path, 0, 4)}, tmp_path, None)
    assert disk_pieces(disk, {"a.vmdk": DiskPart(tmp_path, 0, 6)}, tmp_path, None), "oVirt says what is allocated"
    assert disk_pieces(disk, {"a.vmdk": DiskPart(tmp_path, 0, 4, SUM)}, tmp_path, manifest_of("a.vmdk"))


def test_two_checksums_of_a_file_must_agree() -> None:
    other = Checksum("sha256", "0" * 64)
    with pytest.raises(ArchiveError, match=r"two checksums of '\./a'"):
        PackageManifest([("a", SUM), ("./a", other)])
    assert PackageManifest([("a", Checksum("sha1", "0" * 40)), ("a", SUM), ("a", SUM)]).of("a") == SUM


def test_a_manifest_is_found_whatever_its_case() -> None:
    assert name_beside("vm.ovf", ["vm.MF", "vm2.mf", "vm.vmdk"]) == "vm.MF"
    assert name_beside("VM.OVF", ["vm.mf"]) == "vm.mf"
    assert name_beside("vm.ovf", ["vm.MF", "vm.mf"]) == "vm.mf"
    assert name_beside("vm.ovf", ["other.mf"]) is None
    assert name_in_archive("vm.ovf", ["other.MF", "sub/vm.mf"]) == "other.MF"
    assert name_in_archive("vm.ovf", ["other.mf", "vm.mf"]) == "vm.mf"
    assert name_in_archive("vm.ovf", ["disk.vmdk"]) is None
    with pytest.raises(ArchiveError, match="has 2 manifests"):
        name_in_archive("vm.ovf", ["a.mf", "b.mf"])
