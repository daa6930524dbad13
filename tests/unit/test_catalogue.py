"""Catalogues of images: what they may say, whose signature counts, and what a simplestreams server has for us."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from novacron.api.read_model.catalogues import Catalogues, CatalogueSettings
from novacron.model import catalogue
from novacron.model.errors import InvalidInput

DIGEST = "ab" * 32
BASE = "https://images.example.org"


def plain(**fields: Any) -> bytes:
    image = {"name": "debian-12", "url": f"{BASE}/d.qcow2", "sha256": DIGEST, "size_bytes": 5} | fields
    return msgspec.json.encode({"format": catalogue.FORMAT, "images": [image]})


class Signer:
    """Signs as minisign(1) does."""

    def __init__(self) -> None:
        self._key, self._id = Ed25519PrivateKey.generate(), b"12345678"
        self.public = base64.b64encode(b"Ed" + self._id + self._key.public_key().public_bytes_raw()).decode()

    def sign(self, data: bytes, *, prehashed: bool = True, comment: str = "timestamp:1") -> bytes:
        proof = self._key.sign(hashlib.blake2b(data).digest() if prehashed else data)
        signed = (b"ED" if prehashed else b"Ed") + self._id + proof
        whole = self._key.sign(proof + comment.encode())
        lines = ("untrusted comment: x", base64.b64encode(signed).decode(), f"trusted comment: {comment}",
                 base64.b64encode(whole).decode())  # fmt: skip
        return "\n".join(lines).encode()


@pytest.mark.parametrize("prehashed", [True, False])
def test_a_signature_by_a_known_key_counts(prehashed: bool) -> None:
    signer = Signer()
    catalogue.verify(plain(), signer.sign(plain(), prehashed=prehashed), [Signer().public, signer.public][1:])


def test_no_other_signature_counts() -> None:
    signer, other = Signer(), Signer()
    signature = signer.sign(plain())
    for data, given, keys in (
        (plain(size_bytes=6), signature, [signer.public]),
        (plain(), signature, [other.public]),
        (plain(), signature, []),
        (plain(), signature.replace(b"timestamp:1", b"timestamp:2"), [signer.public]),
        (plain(), b"", [signer.public]),
        (plain(), b"a\nb\nc\nd", [signer.public]),
        (plain(), signature.replace(b"RU", b"QU", 1), [signer.public]),
        (plain(), b"\xff\n" * 4, [signer.public]),
    ):
        with pytest.raises(InvalidInput):
            catalogue.verify(data, given, keys)
    for key in ("", "RW", "x" * 56, "é" * 56):
        with pytest.raises(InvalidInput, match="no public key"):
            catalogue.public_key(key)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "../x"}, {"sha256": "short"}, {"size_bytes": 0}, {"size_bytes": 1 << 60}, {"url": "file:///etc/shadow"},
        {"url": "https://user:secret@host/x"}, {"format": "zip"}, {"description": "x" * 10_000},
    ],
)  # fmt: skip
def test_a_catalogue_says_only_what_it_may(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        catalogue.parse(plain(**fields), "x", signed=True)
    assert catalogue.parse(plain(), "x", signed=True)[0].signed


def products(**fields: Any) -> bytes:
    disk = {"ftype": "disk-kvm.img", "path": "images/new.qcow2", "sha256": DIGEST, "size": 7}
    product = {
        "arch": "amd64", "os": "Debian", "release_title": "12", "variant": "cloud",
        "aliases": "debian/12/cloud,debian/bookworm/cloud,12 cloud",
        "versions": {
            "20260101": {"items": {"disk.qcow2": {**disk, "path": "images/old.qcow2"}}},
            "20260201": {"items": {"root": {**disk, "ftype": "squashfs"}, "disk.qcow2": disk}},
        },
    } | fields  # fmt: skip
    return msgspec.json.encode({"format": "products:1.0", "products": {"debian:12": product}})


def test_the_newest_disk_of_a_simplestreams_product_is_listed() -> None:
    (image,) = catalogue.parse_products(products(), BASE)
    assert (image.name, image.url, image.size_bytes) == ("debian-12-cloud", f"{BASE}/images/new.qcow2", 7)
    assert image.aliases == ("debian-bookworm-cloud", "debian-12-cloud")
    assert image.description == "Debian 12 cloud, 20260201" and not image.signed
    ubuntu = catalogue.parse_products(products(os="ubuntu", aliases="24.04,noble"), BASE)[0]
    assert (ubuntu.name, ubuntu.aliases) == ("ubuntu-24-04", ("ubuntu-noble",))
    assert catalogue.parse_products(products(arch="arm64"), BASE) == []
    assert catalogue.parse_products(products(aliases=""), BASE) == []
    assert catalogue.parse_products(products(versions={}), BASE) == []


@pytest.mark.parametrize("path", ["https://elsewhere.example.org/x", "//elsewhere/x", "/x", "../x", "a/../../x"])
def test_a_simplestreams_server_leads_nowhere_else(path: str) -> None:
    with pytest.raises(InvalidInput, match="leads away"):
        catalogue.beneath(f"{BASE}/streams-root", path)
    index = msgspec.json.encode(
        {"index": {"images": {"path": path, "datatype": "image-downloads"}, "x": {"path": "x"}}}
    )
    assert catalogue.product_lists(index) == [path]


async def test_images_are_found_by_name_and_alias_and_problems_are_said(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad.json"
    good.write_bytes(plain(aliases=["bookworm"]))
    bad.write_text("{}")
    sources = (str(good), str(bad), str(tmp_path / "none"), "http://images.example.org/plain.json")
    catalogues = Catalogues(CatalogueSettings(sources))
    listed = await catalogues.listed()
    assert [image.name for image in listed.items] == ["debian-12"]
    assert [problem.catalogue for problem in listed.problems] == list(sources[1:])
    assert "https://" in listed.problems[2].error
    assert (await catalogues.find("bookworm")).name == "debian-12"
    with pytest.raises(InvalidInput, match="no catalogue has an image 'x'"):
        await catalogues.find("x")
    with pytest.raises(InvalidInput, match="this server has no catalogue"):
        await Catalogues(CatalogueSettings()).find("debian-12")
