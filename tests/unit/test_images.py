"""Images on a host: which are accepted and which refused; the tiny guest's archive."""

from __future__ import annotations

from pathlib import Path

import msgspec

from novacron.disk import luks
from novacron.disk.images import MANIFEST, ImageFile, Manifest, describe, scan
from novacron.disk.tiny import initramfs


def make(root: Path, name: str, kernel: ImageFile | None = None) -> Path:
    directory = root / name
    directory.mkdir(parents=True)
    (directory / "vmlinuz").write_bytes(b"kernel")
    (directory / "initrd.img").write_bytes(b"initrd")
    manifest = Manifest(
        "kernel", kernel or describe(directory / "vmlinuz"), describe(directory / "initrd.img"), "quiet"
    )
    (directory / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return directory


def test_a_valid_image_is_listed(tmp_path: Path) -> None:
    make(tmp_path, "tiny")
    images, wrong = scan(tmp_path)
    assert list(images) == ["tiny"] and not wrong
    assert images["tiny"].info.size_bytes == 12


def test_an_image_is_told_from_another_under_its_name(tmp_path: Path) -> None:
    make(tmp_path, "tiny")
    image = scan(tmp_path)[0]["tiny"]
    assert image.is_(None) and image.is_(image.info.digest) and not image.is_("0" * 64)


def test_a_manifest_must_not_name_a_file_of_the_host(tmp_path: Path) -> None:
    for number, path in enumerate(("/etc/shadow", "../x", ".hidden")):
        make(tmp_path, f"evil{number}", ImageFile(path, "0" * 64, 1))
    images, wrong = scan(tmp_path)
    assert not images
    assert len(wrong) == 3 and all("outside the image" in problem for problem in wrong)


def test_a_link_is_no_image_file(tmp_path: Path) -> None:
    directory = make(tmp_path, "evil")
    (directory / "vmlinuz").unlink()
    (directory / "vmlinuz").symlink_to("/etc/passwd")
    images, wrong = scan(tmp_path)
    assert not images and len(wrong) == 1


def test_the_disk_of_an_encrypted_image_is_as_large_as_what_is_in_it(tmp_path: Path) -> None:
    directory = tmp_path / "secret"
    directory.mkdir()
    (directory / "disk.luks").write_bytes(bytes(luks.HEADER_BYTES + 8192))
    manifest = Manifest("disk", disk=describe(directory / "disk.luks"), encryption_key="key-0123456789abcdef")
    (directory / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    image = scan(tmp_path)[0]["secret"]
    assert (image.info.disk_bytes, image.encryption_key) == (8192, "key-0123456789abcdef")
    (directory / MANIFEST).write_bytes(msgspec.json.encode(manifest).replace(b"key-0123456789abcdef", b"../secret"))
    assert scan(tmp_path)[0] == {}, "that is no id of a key"


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    directory = make(tmp_path, "cut")
    (directory / "vmlinuz").write_bytes(b"ker")
    images, wrong = scan(tmp_path)
    assert not images and "not the file that its manifest describes" in wrong[0]


def test_a_broken_manifest_is_reported_and_stops_no_other_image(tmp_path: Path) -> None:
    make(tmp_path, "tiny")
    (make(tmp_path, "broken") / MANIFEST).write_text("{")
    images, wrong = scan(tmp_path)
    assert list(images) == ["tiny"] and "broken" in wrong[0]


def test_the_kernel_can_read_the_initramfs_archive() -> None:
    data = initramfs(b"\x7fELF", {"virtio_net": b"module"}, {"etc/extra": b"more"})
    assert data[:6] == b"070701"
    assert len(data) % 4 == 0
    assert b"TRAILER!!!" in data and b"modules/virtio_net.ko" in data and b"etc/extra" in data
