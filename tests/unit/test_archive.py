"""Archives of VMs that somebody made to do harm: refused before they cost memory, time or a secret."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from novacron.client import archive_format as archive
from novacron.client.errors import ArchiveError
from tests.support.ovf import descriptor, drive

ENVELOPE = '<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"/>'
BOMB = """<!DOCTYPE bomb [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;">]>
<bomb>&c;</bomb>"""
EXTERNAL = '<!DOCTYPE x [<!ENTITY secret SYSTEM "file://{secret}">]><x>&secret;</x>'
EXTERNAL_DTD = '<!DOCTYPE x SYSTEM "file://{secret}"><x/>'
PARAMETER = '<!DOCTYPE x [<!ENTITY % all SYSTEM "file://{secret}"> %all;]><x/>'


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive_file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive_file.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
@pytest.mark.parametrize("document", [BOMB, EXTERNAL, EXTERNAL_DTD, PARAMETER])
def test_a_description_with_entities_is_refused_in_every_encoding(tmp_path: Path, document: str, encoding: str) -> None:
    (tmp_path / "secret").write_text("<!ENTITY known 'known'>")
    declared = "UTF-16" if encoding.startswith("utf-16") else "ISO-8859-1" if encoding == "latin-1" else "UTF-8"
    text = f'<?xml version="1.0" encoding="{declared}"?>' + document.replace("{secret}", str(tmp_path / "secret"))
    with pytest.raises(ArchiveError, match="defines entities"):
        archive.read(tar(tmp_path / "vm.ova", {"vm.ovf": text.encode(encoding)}))


def test_a_description_in_utf_16_without_entities_is_read(tmp_path: Path) -> None:
    text = f'<?xml version="1.0" encoding="UTF-16"?>{ENVELOPE}'
    with pytest.raises(ArchiveError, match="holds 0 VMs"):
        archive.read(tar(tmp_path / "vm.ova", {"vm.ovf": text.encode("utf-16")}))


@pytest.mark.parametrize("text", ["<x", "", '<?xml version="1.0" encoding="klingon"?><x/>'])
def test_a_description_that_is_no_xml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ArchiveError, match="is no XML"):
        archive.read(tar(tmp_path / "vm.ova", {"vm.ovf": text.encode()}))


def test_json_that_nests_too_deep_is_refused(tmp_path: Path) -> None:
    members = {"vm.json": b"[" * 500_000, "disk.qcow2": b""}
    with pytest.raises(ArchiveError, match="is damaged"):
        archive.read(tar(tmp_path / "vm.tar", members))


def test_an_extended_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "vm.tar"
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 4 << 30
    path.write_bytes(header.tobuf(tarfile.USTAR_FORMAT))
    with path.open("r+b") as file:
        file.truncate(5 << 30)  # sparse: it takes no room
    with pytest.raises(ArchiveError, match=r"a header in .* has more than"):
        archive.read(path)


def test_members_of_all_kinds_count_towards_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "vm.tar"
    with tarfile.open(path, "w") as archive_file:
        for number in range(archive.MEMBERS_MAX + 1):
            directory = tarfile.TarInfo(str(number))
            directory.type = tarfile.DIRTYPE
            archive_file.addfile(directory)
    with pytest.raises(ArchiveError, match="more than 1024 members"):
        archive.read(path)


@pytest.mark.parametrize("folder", ["", "./", "appliance/", "./a b/"])
def test_a_package_in_a_folder_of_its_archive_is_read(tmp_path: Path, folder: str) -> None:
    text = descriptor(drive("v1"))
    manifest = (
        f"SHA256(vm.ovf)= {hashlib.sha256(text).hexdigest()}\nSHA256(one.vmdk)= {hashlib.sha256(b'disk').hexdigest()}\n"
    )
    members = {"vm.ovf": text, "vm.mf": manifest.encode(), "one.vmdk": b"disk"}
    ova = tar(tmp_path / "vm.ova", {folder + name: data for name, data in members.items()} | {"one.vmdk": b"other"})
    if folder in ("", "./"):
        tar(ova, {folder + name: data for name, data in members.items()})
    vm = archive.read(ova)
    (piece,) = vm.disk.pieces
    assert b"".join(piece.read()) == b"disk" and vm.disk.sha256 == hashlib.sha256(b"disk").hexdigest()


@pytest.mark.parametrize("loose", [True, False])
def test_a_descriptor_of_megabytes_is_read_and_one_without_end_is_not(tmp_path: Path, loose: bool) -> None:
    (tmp_path / "one.vmdk").write_bytes(b"disk")

    def written(size_bytes: int) -> Path:
        text = descriptor(drive("v1"), tail="<Info>" + "x" * size_bytes + "</Info>")
        (tmp_path / "vm.ovf").write_bytes(text)
        return tmp_path / "vm.ovf" if loose else tar(tmp_path / "vm.ova", {"vm.ovf": text, "one.vmdk": b"disk"})

    assert archive.read(written(5 << 20)).name == "web"
    with pytest.raises(ArchiveError, match="has more than 8388608 bytes"):
        archive.read(written(9 << 20))


@pytest.mark.parametrize(("pack", "kind"), [(gzip.compress, "gzip"), (lzma.compress, "xz"), (bz2.compress, "bzip2")])
def test_a_compressed_package_is_named_as_such(tmp_path: Path, pack: Callable[[bytes], bytes], kind: str) -> None:
    ova = tar(tmp_path / "vm.ova", {"vm.ovf": descriptor(drive("v1")), "one.vmdk": b"disk"})
    ova.write_bytes(pack(ova.read_bytes()))
    with pytest.raises(ArchiveError, match=rf"compressed \({kind}\): unpack it first"):
        archive.read(ova)


@pytest.mark.parametrize("loose", [True, False])
@pytest.mark.parametrize("named", ["./my disk.vmdk", "my%20disk.vmdk", "my disk.vmdk"])
def test_a_manifest_is_read_whatever_its_case_and_the_spelling_of_its_names(
    tmp_path: Path, named: str, loose: bool
) -> None:
    text = descriptor(drive("v1"), files='<File o:id="f1" o:href="my%20disk.vmdk"/>')

    def package(checksum_of: bytes, name: str = named) -> Path:
        manifest = f"SHA256({name})= {hashlib.sha256(checksum_of).hexdigest()}\n".encode()
        members = {"vm.ovf": text, "vm.MF": manifest, "my disk.vmdk": b"disk"}
        for file, data in members.items():
            (tmp_path / file).write_bytes(data)
        ova = tar(tmp_path / "vm.ova", {f"./{file}": data for file, data in members.items()})
        return tmp_path / "vm.ovf" if loose else ova

    assert archive.read(package(b"disk")).disk.sha256 == hashlib.sha256(b"disk").hexdigest()
    assert archive.read(package(b"disc")).disk.sha256 == hashlib.sha256(b"disc").hexdigest(), "the node compares it"
    with pytest.raises(ArchiveError, match=r"does not name 'my disk\.vmdk'"):
        archive.read(package(b"disk", "other.vmdk"))


def test_an_ova_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    ova = tar(tmp_path / "vm.ova", {"vm.ovf": descriptor(drive("v1")), "one.vmdk": b"disk" * 1000})
    data = ova.read_bytes()
    ova.write_bytes(data[: data.index(b"diskdisk") + 2000])
    with pytest.raises(ArchiveError, match="is cut off: fetch it again"):
        archive.read(ova)


def test_a_disk_has_at_least_the_capacity_that_its_descriptor_says(tmp_path: Path) -> None:
    text = descriptor(drive("v1"))
    ova = tar(tmp_path / "vm.ova", {"vm.ovf": text, "one.vmdk": b"disk"})
    assert archive.read(ova).disk.capacity_bytes == 8 << 30


@pytest.mark.parametrize(("written", "member"), [("St\u00f6rung", "Sto\u0308rung"), ("Sto\u0308rung", "St\u00f6rung")])
def test_a_member_with_accents_is_found_composed_and_decomposed(tmp_path: Path, written: str, member: str) -> None:
    text = descriptor(drive("v1"), files=f'<File o:id="f1" o:href="{written}.vmdk"/>')
    ova = tar(tmp_path / "vm.ova", {"vm.ovf": text, f"{member}.vmdk": b"disk"})
    assert b"".join(archive.read(ova).disk.pieces[0].read()) == b"disk"
