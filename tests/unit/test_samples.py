"""The program that tries public samples: it finds what came in wrong, and its table can be read."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
from pathlib import Path

import pytest

from lab import samples
from lab.sample_imports import ReadPackage, Refused, Taken
from novacron.client.ovf import OvfDisk, OvfMachine
from tests.support import vhdx
from tests.support.ovf import CD, CPUS, SCSI, descriptor, drive, memory

SIZE = 4 << 20
DISK = samples.ExpectedDisk("0" * 64, "a", "b", "raw", content="c" * 64, size_bytes=SIZE)
REFUSED = samples.ExpectedDisk("0" * 64, "a", "b", "raw", refused="cut off")


@pytest.mark.parametrize(
    ("outcome", "expected", "right"),
    [
        (Taken("c" * 64, SIZE), DISK, True),
        (Taken("d" * 64, SIZE), DISK, False),
        (Taken("c" * 64, SIZE + 512), DISK, False),
        (Refused("it is cut off"), DISK, False),
        (Refused("it is cut off; fetch it again"), REFUSED, True),
        (Refused("internal error in its agent"), REFUSED, False),
        (Taken("c" * 64, SIZE), REFUSED, False),
    ],
)
def test_what_came_of_a_disk_is_judged_by_its_content_or_its_words(
    outcome: Taken | Refused, expected: samples.ExpectedDisk, right: bool
) -> None:
    assert samples.judge_disk(outcome, expected).right is right


def test_each_difference_of_a_package_is_found() -> None:
    machine = OvfMachine("web", {"vcpus": 2}, (OvfDisk("a", 5), OvfDisk(None, 9)), ("a CD 'x'", "a CD 'y'"), ("m",))
    read = ReadPackage(machine, None)

    def judged(**other: object) -> bool | None:
        right: dict[str, object] = {
            "vm": "web", "fields": {"vcpus": 2}, "disks": ("a 5", " 9"), "macs": ("m",), "dropped": ("CD", "CD"),
        }  # fmt: skip
        expected = samples.ExpectedPackage("0" * 64, "n", "o", "OVF", **{**right, **other})  # type: ignore[arg-type]
        return samples.judge_package(read, expected).right

    assert judged() is True
    wrong = {"vm": "x", "fields": {"vcpus": 1}, "disks": ("a 5",), "macs": (), "dropped": ("CD", "CD", "CD")}
    for field, value in wrong.items():
        assert judged(**{field: value}) is False, field
    assert judged(refused="no disk") is False
    assert samples.judge_package(read, None).right is None


def test_the_table_names_each_sample_once_with_its_origin_and_no_host() -> None:
    expected = samples.table()
    assert expected.disks and expected.packages and not expected.disks.keys() & expected.packages.keys()
    known = [(digest, disk.origin) for digest, disk in expected.disks.items()]
    known += [(digest, package.origin) for digest, package in expected.packages.items()]
    for digest, origin in known:
        assert len(digest) == 64 and ": " in origin and "//" not in origin
    for disk in expected.disks.values():
        assert bool(disk.content and disk.size_bytes) is not bool(disk.refused), disk
    for package in expected.packages.values():
        assert bool(package.vm and package.disks) is not bool(package.refused), package


async def test_samples_are_brought_in_as_an_agent_does_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "samples"
    make_samples(directory)
    raw = (directory / "disk.raw").read_bytes()
    known = samples.ExpectedDisk(
        samples.sha256_of(directory / "page.img"), "page.img", "here: page.img", "page", refused="web page"
    )
    wrong = samples.ExpectedDisk(
        samples.sha256_of(directory / "disk.raw"), "disk.raw", "here: disk.raw", "raw", refused="no disk"
    )
    package = samples.ExpectedPackage(
        samples.sha256_of(directory / "vm.ovf"), "vm.ovf", "here: vm.ovf", "OVF", vm="web",
        fields={"vcpus": 2, "memory_mib": 512}, disks=("one.vmdk 8388608",), dropped=("CD",),
    )  # fmt: skip
    content = bytes([vhdx.PATTERN]) * (1 << 20) + bytes(15 << 20)
    log = samples.ExpectedDisk(
        samples.sha256_of(directory / "log.vhdx"), "log.vhdx", "here: log.vhdx", "VHDX",
        content=hashlib.sha256(content).hexdigest(), size_bytes=len(content),
    )  # fmt: skip
    disks = {each.sha256: each for each in (known, wrong, log)}
    counts = await samples.run(directory, samples.Table(disks, {package.sha256: package}))
    lines = capsys.readouterr().out
    assert dict(counts) == {
        ("page", "right"): 1, ("raw", "WRONG"): 1, ("OVF", "right"): 1, ("VHDX", "right"): 1,
        ("not in the table", "right"): 2, ("not in the table", "?"): 1,
    }, lines  # fmt: skip
    assert lines.count(hashlib.sha256(raw).hexdigest()) == 2, "the qcow2 and the compressed disk became the same"
    assert "right vm.ovf: taken with blank disks" in lines and "it is a tar archive" in lines
    assert list(samples.summary(counts))[-3:] == ["5 right", "1 WRONG", "1 ?"]


def make_samples(directory: Path) -> None:
    directory.mkdir()
    raw = directory / "disk.raw"
    raw.write_bytes((bytes(510) + b"\x55\xaa" + b"x" * 3584).ljust(SIZE, b"\0"))
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(directory / "disk.qcow2")]
    subprocess.run(convert, check=True)
    (directory / "disk.raw.gz").write_bytes(gzip.compress(raw.read_bytes()))
    vhdx.with_log(directory / "log.vhdx")
    (directory / "page.img").write_bytes(b"<!doctype html>" + bytes(600))
    (directory / "other.tar").write_bytes(b"name".ljust(257, b"\0") + b"ustar\0" + bytes(1000))
    (directory / "vm.mf.cert").touch()
    parts = {
        "disks": '<Disk o:diskId="v1" o:fileRef="f1" o:capacity="8" o:capacityAllocationUnits="byte * 2^20"/>',
        "files": '<File o:id="f1" o:href="one.vmdk"/>',
    }
    hardware = CPUS + memory("512", "MB") + SCSI + CD + drive("v1")
    (directory / "vm.ovf").write_bytes(descriptor(hardware, **parts))
