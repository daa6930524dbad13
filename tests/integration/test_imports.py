"""Images that come from outside, good and hostile, by every way."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import struct
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from lab.platform import Platform, until
from novacron.agent.images.download import UNREACHABLE
from novacron.client import ApiError
from novacron.disk.images import MANIFEST, verify
from tests.integration.conftest import Api
from tests.support.readable import everything_readable

SIZE = 6 << 20
NewVm = Callable[..., dict[str, Any]]


@pytest.fixture
def name(site: Platform, new_name: Callable[[], str]) -> Iterator[str]:
    """A name for an image, which is removed afterwards, and of which nothing may be left."""
    image_name = new_name()
    yield image_name
    if any(image["name"] == image_name for image in site.client.list("images")):
        site.client.delete_image(image_name)
    hosts = [site.images_of(host.name) for host in site.lab.hosts]

    def left() -> list[str]:
        names = [path.name for images in hosts for path in images.iterdir()]
        return [file_name for file_name in names if file_name.startswith(".") or file_name == image_name]

    until(lambda: not left(), "nothing is left of the image")  # an agent may hear of an import after its end


def disk(path: Path) -> Path:
    """Write a disk of numbered blocks with a hole in it, and a partition table."""
    with path.open("wb") as file:
        for number in range(256):
            file.write(hashlib.sha256(number.to_bytes(4, "big")).digest() * 128)
        file.truncate(SIZE)
        file.seek(446)
        file.write(struct.pack("<B3sB3sII", 0, bytes(3), 0x83, bytes(3), 8, 8).ljust(64, b"\0") + b"\x55\xaa")
    return path


def wait_until_finished(site: Platform, begun: dict[str, Any]) -> dict[str, Any]:
    ended_import = site.client.wait(
        "imports", begun["id"], lambda now: now is None or now["finished_at"] is not None, 60
    )
    assert ended_import is not None
    return ended_import


def disk_file_of(site: Platform, node: str, name: str) -> Path:
    return site.images_of(node) / name / "disk.raw"


@pytest.mark.parametrize(
    "format",
    ["raw", "qcow2", "vmdk", "vmdk -o subformat=streamOptimized", "vdi", "vhdx", "vpc -o force_size=on",
     "vpc -o subformat=fixed,force_size=on", "gzip", "xz", "zstd", "zip", "qcow2.xz"],
)  # fmt: skip
def test_a_disk_of_each_format_becomes_the_same_image(site: Platform, name: str, tmp_path: Path, format: str) -> None:
    raw, file = disk(tmp_path / "raw"), tmp_path / "disk"
    packed: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress, "xz": lzma.compress, "zstd": zstandard.compress, "qcow2.xz": lzma.compress,
        "zip": zipped,
    }  # fmt: skip
    if format in packed:
        kind = format.partition(".")[0] if "." in format else "raw"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", kind, str(raw), str(file)], check=True)
        file.write_bytes(packed[format](file.read_bytes()))
    else:
        kind, *options = format.split()
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", kind, *options, str(raw), str(file)], check=True)
    said = site.cli("image", "import", name, str(file), "--description", "of a test").stdout
    assert said.startswith(f"image {name} is on host-")
    image = site.client.get("images", name)
    assert image["kind"] == "disk" and image["disk_bytes"] == SIZE and image["description"] == "of a test"
    disk_file = disk_file_of(site, image["nodes"][0], name)
    assert disk_file.read_bytes() == raw.read_bytes()
    described = json.loads((disk_file.parent / MANIFEST).read_bytes())["disk"]
    assert described["sha256"] == hashlib.sha256(raw.read_bytes()).hexdigest(), "same content, same digest"
    assert disk_file.stat().st_blocks * 512 < SIZE, "holes stay holes"
    assert disk_file.stat().st_uid == 0 and not disk_file.stat().st_mode & 0o077, "no VM opens it by name"


def test_an_interrupted_upload_resumes_where_it_stopped(site: Platform, api: Api, name: str, tmp_path: Path) -> None:
    file = disk(tmp_path / "raw")
    data, digest = file.read_bytes(), hashlib.sha256(file.read_bytes()).hexdigest()
    begun = site.client.request(
        "POST", "/api/v1/imports", {"name": name, "size_bytes": SIZE, "sha256": digest, "node": "host-a"}
    )
    path = f"/api/v1/imports/{begun['id']}/data?offset="
    assert site.client.request("PUT", f"{path}0", raw=data[: 1 << 20]) == {"held_bytes": 1 << 20}
    assert site.client.request("PUT", f"{path}0", raw=data[: 1 << 20]) == {"held_bytes": 1 << 20}, "sent again"
    assert site.client.request("PUT", f"{path}{3 << 20}", raw=data[:4096]) == {"held_bytes": 1 << 20}, "out of order"
    assert api("PUT", f"{path}{SIZE}", raw=b"x").problem["field"] == "offset"
    site.agents["host-a"].kill()
    site.agents["host-a"].start()
    site.wait_node("host-a")
    until(
        lambda: _put(api, f"{path}{1 << 20}", data[1 << 20 : 2 << 20]) == 2 << 20, "the new agent takes the next piece"
    )
    site.server.kill()
    site.server.start()
    site.wait_ready()
    until(lambda: _put(api, f"{path}{2 << 20}", data[2 << 20 : 3 << 20]) == 3 << 20, "so does a new server")
    assert site.client.upload(site.client.get("imports", begun["id"]), file)["held_bytes"] in (3 << 20, SIZE)
    assert wait_until_finished(site, begun)["phase"] == "done"
    assert disk_file_of(site, "host-a", name).read_bytes() == data


def _put(api: Api, path: str, piece: bytes) -> int:
    answer = api("PUT", path, raw=piece)
    return int(answer.body["held_bytes"]) if answer.status == 200 else -1


def test_a_file_with_the_wrong_checksum_is_discarded(site: Platform, name: str, tmp_path: Path) -> None:
    done = site.cli("image", "import", name, str(disk(tmp_path / "raw")), "--sha256", "0" * 64, check=False)
    assert done.returncode == 1 and "its SHA-256 is" in done.stderr
    assert all(image["name"] != name for image in site.client.list("images"))


def test_an_administrator_imports_into_the_project_that_the_request_names(site: Platform, name: str) -> None:
    project = f"p-{name}"
    site.client.request("POST", "/api/v1/projects", {"name": project})
    path = f"?project={project}"
    refused = {"name": name, "size_bytes": SIZE, "shared": True}
    with pytest.raises(ApiError, match="shared: an image that all projects share belongs to none"):
        site.client.request("POST", f"/api/v1/imports{path}", refused)
    begun = site.client.request("POST", f"/api/v1/imports{path}", {"name": name, "size_bytes": SIZE})
    assert begun["project"] == project
    assert site.client.request("GET", f"/api/v1/imports/{begun['id']}{path}")["id"] == begun["id"]
    site.client.request("DELETE", f"/api/v1/imports/{begun['id']}{path}")


def test_an_import_fetches_nothing_from_the_node_itself(site: Platform, name: str) -> None:
    for host in ("127.0.0.1", f"localhost:{site.ports[0]}"):
        done = wait_until_finished(site, site.client.import_image(name, url=f"http://{host}/disk"))
        assert done["error"] == UNREACHABLE, done


def test_an_image_of_a_catalogue_is_imported_by_its_name(site: Platform, api: Api, name: str) -> None:
    assert "catalogued" in site.cli("image", "list", "--remote").stdout
    begun = site.client.import_image(name, catalogue_image="catalogued")
    assert (begun["spec"]["sha256"], begun["spec"]["size_bytes"]) == ("ab" * 32, 1 << 20)
    assert wait_until_finished(site, begun)["error"] == UNREACHABLE, "catalogues lead where no other import does"
    for fields in ({"catalogue_image": "none"}, {"catalogue_image": "catalogued", "url": "https://example.net/x"}):
        assert api("POST", "/api/v1/imports", {"name": name, **fields}).problem["field"] == "catalogue_image"
    refused = api("POST", "/api/v1/imports", {"name": name, "catalogue_image": "catalogued", "sha256": "0" * 64})
    assert refused.problem["field"] == "sha256"


@pytest.mark.parametrize("path", ["/etc/shadow", "../../../etc/shadow", "..", ""])
def test_a_path_outside_the_nodes_directory_is_refused(api: Api, name: str, path: str) -> None:
    assert api("POST", "/api/v1/imports", {"name": name, "path": path}).problem["field"] == "path"


def test_a_link_out_of_the_nodes_directory_is_not_followed(site: Platform, name: str, tmp_path: Path) -> None:
    root = site.directory / "host-a" / "imports"
    root.mkdir(exist_ok=True)
    (root / "link").symlink_to("/etc/shadow")
    (root / "folder").symlink_to("/etc")
    os.mkfifo(root / "pipe")
    for path in ("link", "folder/shadow", "pipe", "nothing"):
        done = wait_until_finished(site, site.client.import_image(name, path=path, node="host-a"))
        assert done["phase"] == "failed" and path in done["error"]
    disk(root / "it, 'is' $HOME.img")
    done = wait_until_finished(site, site.client.import_image(name, path="it, 'is' $HOME.img", node="host-a"))
    assert done["phase"] == "done", done
    for entry in ("link", "folder", "pipe", "it, 'is' $HOME.img"):
        (root / entry).unlink()


def zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/disk.img", data)
    return out.getvalue()


def hostile(path: Path, kind: str) -> Path:
    """Write a harmful or contradictory disk file."""
    create = ["qemu-img", "create", "-q", "-f", "qcow2"]
    match kind:
        case "a backing file":
            subprocess.run([*create, "-u", "-F", "raw", "-b", "/etc/shadow", str(path), "1M"], check=True)
        case "an external data file":
            secret = path.with_suffix(".data")
            subprocess.run([*create, "-o", f"data_file={secret},data_file_raw=on", str(path), "1M"], check=True)
        case "10 TB":
            subprocess.run([*create, str(path), "10T"], check=True)
        case "a broken header":
            subprocess.run([*create, str(path), "1M"], check=True)
            data = bytearray(path.read_bytes())
            data[40:64] = b"\xff" * 24  # where its tables are, and how large
            path.write_bytes(data)
        case "two disks in a zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a", b"1")
                archive.writestr("b", b"2")
        case "a web page":
            path.write_bytes(b"<!DOCTYPE html>\n<title>Not found</title>")
        case "a qcow2 that was cut off":
            subprocess.run(
                ["qemu-img", "convert", "-O", "qcow2", str(disk(path.with_suffix(".raw"))), path], check=True
            )
            os.truncate(path, path.stat().st_size - 300_000)
        case "a compressed qcow2 without its last 600 bytes":
            raw = str(disk(path.with_suffix(".raw")))
            subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", raw, path], check=True)
            os.truncate(path, path.stat().st_size - 600)
        case "a partition that was cut off":
            disk(path)
            with path.open("r+b") as file:
                file.seek(446 + 12)
                file.write(struct.pack("<I", SIZE // 512))
        case "noise":
            path.write_bytes(b"noise" * 10_000)
        case "one byte":
            path.write_bytes(b"\0")
    return path


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("a backing file", "has a backing file"),
        ("an external data file", "data is in an external data file"),
        ("10 TB", "its disk has 10995116277760 bytes"),
        ("a broken header", "it is cut off: its L1 table"),
        ("two disks in a zip", "a zip of 2 files"),
        ("a web page", "a web page or XML, not a disk"),
        ("a qcow2 that was cut off", "it is cut off"),
        ("a compressed qcow2 without its last 600 bytes", "it is cut off"),
        (
            "a partition that was cut off",
            "its partition 1 ends at 6295552; fetch it again, or import it with --format raw",
        ),
        ("noise", "does not look like a disk"),
        ("one byte", "does not look like a disk"),
    ],
)
def test_a_hostile_image_is_refused_with_its_reason(
    site: Platform, name: str, tmp_path: Path, kind: str, why: str
) -> None:
    done = site.cli("image", "import", name, str(hostile(tmp_path / "disk", kind)), check=False)
    assert done.returncode == 1 and why in done.stderr, done.stderr


def test_a_second_import_of_the_same_name_and_bad_names_are_refused(site: Platform, api: Api, name: str) -> None:
    begun = site.client.import_image(name, size_bytes=SIZE)
    assert api("POST", "/api/v1/imports", {"name": name, "size_bytes": 1}).problem["field"] == "name"
    site.cli("image", "abort", begun["id"])
    assert site.client.get("imports", begun["id"])["phase"] == "failed"
    assert site.cli("image", "abort", begun["id"], check=False).returncode == 4
    for bad in ("a,b", "../x", "$(id)", "A", "a b", "-a", ".."):
        assert api("POST", "/api/v1/imports", {"name": bad, "size_bytes": 1}).problem["field"] == "name"
    for fields in ({}, {"url": "http://a", "path": "b"}):
        assert api("POST", "/api/v1/imports", {"name": name, **fields}).status == 400
    for url in ("file:///etc/shadow", "ftp://host/x", "http://u:p@host/x", "http:///x", "http://host:99999/"):
        assert api("POST", "/api/v1/imports", {"name": name, "url": url}).problem["field"] == "url"


def test_an_image_in_use_is_not_removed_and_the_other_node_fetches_it(
    site: Platform, new_vm: NewVm, name: str, tmp_path: Path
) -> None:
    site.cli("image", "import", name, str(disk(tmp_path / "raw")), "--node", "host-a")
    vm = new_vm(image=name, node="host-b", disk_mib=16)
    site.wait_state(vm["id"], "running")
    assert sorted(site.client.get("images", name)["nodes"]) == ["host-a", "host-b"]
    assert everything_readable(site) == [], "another user of a host can read it"
    with pytest.raises(ApiError, match="VMs were created from image"):
        site.client.delete_image(name)
    shown = site.cli("vm", "set", vm["name"], "--disk", "24").stdout
    assert vm["name"] in shown
    until(lambda: '"action": "grow"' in site.agents["host-b"].log.read_text(), "the running VM's disk has grown")
    assert site.cli("vm", "set", vm["name"], "--disk", "8", check=False).returncode == 2
    site.client.delete("vms", vm["id"])
    until(lambda: all(v["id"] != vm["id"] for v in site.client.list("vms")), "it is deleted")


def test_a_disk_with_a_partial_last_page_is_described_as_stored(site: Platform, name: str) -> None:
    root = site.directory / "host-a" / "imports"
    root.mkdir(exist_ok=True)
    data = os.urandom((5 << 20) + 1000)
    (root / "odd.raw").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    done = wait_until_finished(
        site, site.client.import_image(name, path="odd.raw", format="raw", sha256=digest, node="host-a")
    )
    assert done["phase"] == "done", done
    (root / "odd.raw").unlink()
    kept = disk_file_of(site, "host-a", name).read_bytes()
    assert kept == data.ljust(-(-len(data) // 4096) * 4096, b"\0")
    verify(site.images_of("host-a") / name, next(i["digest"] for i in site.client.list("images") if i["name"] == name))


@pytest.mark.parametrize("format", ["raw", "vmdk"])
def test_an_import_survives_a_kill_while_its_upload_is_converted(
    site: Platform, name: str, tmp_path: Path, format: str
) -> None:
    raw, file = tmp_path / "raw", tmp_path / "disk"
    raw.write_bytes(os.urandom((64 << 20) - 512))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", format, str(raw), str(file)], check=True)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    begun = site.client.begin_import(name, size_bytes=file.stat().st_size, sha256=digest, format=format, node="host-a")
    scratch = site.images_of("host-a") / f".importing-host-a.{begun['id']}"
    killed = threading.Thread(
        target=kill_once_there, args=(site, scratch / "disk.raw", site.images_of("host-a") / name)
    )
    killed.start()
    try:
        site.client.upload(begun, file)
    finally:
        killed.join()
    assert wait_until_finished(site, begun)["phase"] == "done"
    assert disk_file_of(site, "host-a", name).read_bytes()[: raw.stat().st_size] == raw.read_bytes()
    assert not scratch.exists()


def kill_once_there(site: Platform, *any_of: Path) -> None:
    until(lambda: any(path.exists() for path in any_of), "its disk is being created", 60)
    site.agents["host-a"].kill()
    site.agents["host-a"].start()
