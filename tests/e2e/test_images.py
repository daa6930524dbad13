"""Images that go from node to node."""

from __future__ import annotations

import os
import shutil

import msgspec
import pytest

from lab.platform import Platform, default_cache, until
from novacron.disk.images import MANIFEST, Manifest, describe
from tests.e2e.conftest import boot, delete
from tests.waiting import pause

OTHER = "is not the one that it was created from"
FILES = ("vmlinuz", "initrd.img", "disk.raw", MANIFEST)


def add_image(victim: Platform, name: str, node: str, description: str) -> None:
    """Put an image that differs from all others into a node's directory, and wait until the platform knows it."""
    target = victim.images_of(node) / name
    shutil.copytree(default_cache() / "images" / "disk", target)
    target.chmod(0o700)  # the cache's own mode depends on who has used it
    (target / "version").unlink()
    manifest = msgspec.json.decode((target / MANIFEST).read_bytes(), type=Manifest)
    (target / MANIFEST).write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, description=description)))
    until(lambda: holders(victim, name) == [node], "the image is known", 20)


def describe_anew(victim: Platform, name: str, node: str, description: str) -> None:
    """Put another image under a name that a node has: its manifest, of which the digest is, says something else."""
    path = victim.images_of(node) / name / MANIFEST
    manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    path.with_suffix(".new").write_bytes(
        msgspec.json.encode(msgspec.structs.replace(manifest, description=description))
    )
    path.with_suffix(".new").replace(path)


def holders(victim: Platform, name: str) -> list[str]:
    return [node for image in victim.client.list("images") if image["name"] == name for node in image["nodes"]]


def digest_of(victim: Platform, name: str) -> str:
    """Return the digest of the image that a name means; empty: none."""
    return "".join(image["digest"] for image in victim.client.list("images") if image["name"] == name)


def test_an_image_goes_to_another_node_and_boots_there(victim: Platform) -> None:
    add_image(victim, "goes", "host-a", "only here at first")
    said = victim.cli("image", "copy", "goes", "host-b").stdout
    assert "was copied from node host-a" in said
    assert holders(victim, "goes") == ["host-a", "host-b"]
    for file in FILES:
        there, here = (victim.images_of(node) / "goes" / file for node in ("host-b", "host-a"))
        assert there.read_bytes() == here.read_bytes()
    assert (victim.images_of("host-b") / "goes" / "disk.raw").stat().st_blocks * 512 < 24 << 20, "holes stay holes"
    again = victim.cli("image", "copy", "goes", "host-b", check=False)
    assert again.returncode != 0 and "already holds image goes" in again.stderr
    vm = boot(victim, "arrived", 70, node="host-b", image="goes")
    delete(victim, vm)


def test_a_vm_on_a_node_without_its_image_starts_once_the_image_has_arrived(victim: Platform) -> None:
    add_image(victim, "wanted", "host-a", "asked for by a VM")
    vm = boot(victim, "early", 71, node="host-b", image="wanted")
    assert holders(victim, "wanted") == ["host-a", "host-b"]
    mark = victim.images_of("host-b") / ".fetched-wanted"
    os.utime(mark, (0, 0))
    until(lambda: mark.stat().st_mtime > 0, "its node sees that it is used")
    delete(victim, vm)
    os.utime(mark, (0, 0))
    until(lambda: holders(victim, "wanted") == ["host-a"], "what no VM there needs any more has gone")
    until(lambda: not mark.exists(), "and its mark")
    assert "of which no VM there is made" in victim.cli("events", "--object", "host-b").stdout


def test_an_image_that_differs_from_its_manifest_is_rejected(victim: Platform) -> None:
    add_image(victim, "damaged", "host-a", "damaged after it was described")
    with (victim.images_of("host-a") / "damaged" / "initrd.img").open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    failed = victim.cli("image", "copy", "damaged", "host-b", check=False)
    assert failed.returncode == 1 and "initrd.img is not the file that the manifest describes" in failed.stdout
    assert [path.name for path in victim.images_of("host-b").iterdir() if "damaged" in path.name] == []
    assert not list(victim.images_of("host-b").glob(".receiving-*"))


@pytest.mark.slow
def test_a_dead_link_costs_a_copy_the_outage_and_a_killed_target_keeps_nothing(victim: Platform) -> None:
    add_image(victim, "patient", "host-a", "is cut off on its way")
    host = victim.host("host-a")
    begun = victim.client.copy_image("patient", "host-b")
    until(lambda: list(victim.images_of("host-b").glob(".receiving-*")), "it is on its way")
    host.cut()
    pause(8)
    assert "host-b" not in holders(victim, "patient")
    host.mend()
    assert victim.client.wait_for_copy(begun, 60)["reason"] == "ImageCopied"
    add_image(victim, "killed", "host-a", "its receiver is killed")
    victim.client.copy_image("killed", "host-b")
    until(lambda: list(victim.images_of("host-b").glob(".receiving-*")), "it is on its way")
    victim.agents["host-b"].kill()
    victim.agents["host-b"].start()
    victim.wait_node("host-b")
    until(lambda: not list(victim.images_of("host-b").glob(".receiving-*")), "nothing is left of it")
    assert not (victim.images_of("host-b") / "killed").exists()


def test_impossible_image_copies_are_refused(victim: Platform) -> None:
    for arguments, why in (
        (("nothing", "host-b"), "no node holds an image 'nothing'"),
        (("tiny", "host-z"), "host-z"),
        (("tiny", "host-b", "--from", "host-z"), "host-z"),
        (("tiny", "host-b"), "already holds image tiny"),
    ):
        refused = victim.cli("image", "copy", *arguments, check=False)
        assert refused.returncode != 0 and why in refused.stderr


def test_the_manifest_names_every_file(victim: Platform) -> None:
    directory = victim.images_of("host-a") / "disk"
    manifest = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
    assert [file.path for file in manifest.files] == list(FILES[:3])
    assert describe(directory / "disk.raw") == manifest.disk


@pytest.mark.slow
def test_a_vm_keeps_to_the_image_that_it_was_made_of_though_another_has_taken_its_name(victim: Platform) -> None:
    """By whatever way it came there: no move, restart or clone of the VM takes the other."""
    add_image(victim, "pinned", "host-a", "the true one")
    victim.cli("image", "copy", "pinned", "host-b")
    true, vm = digest_of(victim, "pinned"), boot(victim, "keeps", 72, image="pinned")
    describe_anew(victim, "pinned", "host-b", "a false one")
    until(lambda: holders(victim, "pinned") == ["host-a"], "what host-b has under the name is not it")
    moved = victim.cli("vm", "migrate", "keeps", "--to", "host-b", "--wait", check=False)
    assert moved.returncode != 0, moved.stdout
    now = victim.wait_state(vm["id"], "running")
    assert (now["node"], now["status"]["pid"]) == ("host-a", victim.qemus()[f"host-a/{vm['id']}"])
    describe_anew(victim, "pinned", "host-a", "another false one")
    victim.cli("vm", "kill", "keeps", "--wait")
    until(lambda: digest_of(victim, "pinned") not in ("", true), "the name means another image")
    clone = victim.client.clone_vm(vm["id"], "keeps-too", power="running")
    victim.cli("vm", "start", "keeps")
    for id in (vm["id"], clone["id"]):
        until(lambda id=id: OTHER in str(victim.client.get("vms", id)["status"]), "it says why it does not start", 60)  # type: ignore[misc]
    assert not [key for key in victim.qemus() if vm["id"] in key or clone["id"] in key]
    describe_anew(victim, "pinned", "host-a", "the true one")
    victim.wait_state(vm["id"], "running")
    for made in (clone, vm):
        delete(victim, made)
