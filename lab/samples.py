"""Public samples of disk images and OVF packages, brought in by the product's own code, compared with what is right.

``python -m lab.samples DIRECTORY`` tries all samples in a directory; docs/testing.md says where they come from. They
are not part of the repository. What is right is written in samples.toml, by the SHA-256 of each sample. A disk that is
not there is compared with what ``qemu-img`` reads; what else is not there is only listed. Ends with 1 if anything came
in wrong, or was refused wrongly.
"""

from __future__ import annotations

import argparse
import asyncio
import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import shutil
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from lab.sample_imports import Agent, ImportedDisk, ReadPackage, Refused, Taken, agent, read_package, take_disks, whole
from novacron.client.errors import ArchiveError
from novacron.client.ovf import OvfDisk
from novacron.disk import qemu_img
from novacron.disk.qemu_img import ImgFailed, Invocation
from novacron.telemetry import logs

TABLE = Path(__file__).with_name("samples.toml")
PACKAGES = (".ovf", ".ova")
BESIDE = (".mf", ".cert")
"""Files of packages that are no samples by themselves."""
COMPARE_S_MAX = 600.0
COMPARE_LIMITS = ("--as=2147483648", "--cpu=600", "--core=0")
UNPACKERS: dict[bytes, Callable[[Path], io.BufferedIOBase]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}


class ExpectedDisk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a disk image has to become: SHA-256 of its raw content and its size, or a refusal with these words."""

    sha256: str
    name: str
    origin: str
    kind: str
    """What it is, for the summary."""
    content: str = ""
    size_bytes: int = 0
    refused: str = ""


class ExpectedPackage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What VM a package has to become, or a refusal with these words."""

    sha256: str
    name: str
    origin: str
    kind: str
    refused: str = ""
    vm: str = ""
    fields: dict[str, int | str | bool] = {}
    disks: tuple[str, ...] = ()
    """Each as ``disk_words`` says it."""
    macs: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    """Words that what is said to be dropped has to have, each in a sentence of its own."""


class Table(NamedTuple):
    disks: Mapping[str, ExpectedDisk]
    packages: Mapping[str, ExpectedPackage]


class Verdict(NamedTuple):
    """``right``: None when nobody says what is right."""

    right: bool | None
    said: str
    kind: str = ""


class _Tables(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    disks: tuple[ExpectedDisk, ...] = ()
    packages: tuple[ExpectedPackage, ...] = ()


def table(path: Path = TABLE) -> Table:
    """Return what is right, by the SHA-256 of each sample. Raises OSError, ValueError."""
    read = msgspec.convert(tomllib.loads(path.read_text()), _Tables)
    return Table({disk.sha256: disk for disk in read.disks}, {package.sha256: package for package in read.packages})


def samples(directory: Path) -> Iterator[Path]:
    """Yield the samples in a directory, each content once."""
    seen: set[str] = set()
    for file in sorted(directory.rglob("*")):
        if not file.is_file() or file.is_symlink() or file.suffix.lower() in BESIDE or not file.stat().st_size:
            continue
        digest = sha256_of(file)
        if digest not in seen:
            seen.add(digest)
            yield file


async def judge(file: Path, expected: Table, agent: Agent) -> Verdict:
    """Bring a sample in and say whether that came out right. Raises OSError."""
    digest = await asyncio.to_thread(sha256_of, file)
    package = expected.packages.get(digest)
    if package is not None or (file.suffix.lower() in PACKAGES and digest not in expected.disks):
        with tempfile.TemporaryDirectory(prefix="novacron-") as scratch:
            return await _judge_package(file, package, agent, Path(scratch))
    disk = expected.disks.get(digest)
    came = await agent.take(whole(file))
    try:
        return await _judge_unknown(file, came) if disk is None else judge_disk(came.outcome, disk)
    finally:
        agent.forget(came)


def judge_disk(outcome: Taken | Refused, expected: ExpectedDisk) -> Verdict:
    """Say whether what came of a disk image is right."""
    if isinstance(outcome, Refused):
        right = bool(expected.refused) and expected.refused in outcome.why
        said = f"refused: {outcome.why}"
    else:
        right = not expected.refused and outcome == Taken(expected.content, expected.size_bytes)
        said = f"taken: {outcome.size_bytes} bytes, {outcome.content[:16]}"
    if right:
        return Verdict(True, said, expected.kind)
    wanted = f"{expected.size_bytes} bytes, {expected.content[:16]}"
    wanted = f"refused with {expected.refused!r}" if expected.refused else wanted
    return Verdict(False, f"{said}; right is: {wanted}", expected.kind)


async def _judge_unknown(file: Path, came: ImportedDisk) -> Verdict:
    """Compare a disk that nobody described with what ``qemu-img`` makes of its file, which names no other: the product
    took it."""
    if isinstance(came.outcome, Refused) or came.raw is None:
        return Verdict(None, f"not in the table; refused: {came.outcome}")
    said = f"not in the table; taken: {came.outcome.size_bytes} bytes, {came.outcome.content}"
    with _unpacked(file) as plain:
        command = ["compare", "-q", "-F", "raw", str(plain), str(came.raw)]
        try:
            await qemu_img.run(command, COMPARE_S_MAX, Invocation(limits=COMPARE_LIMITS))
        except ImgFailed as error:
            if error.code == 1:
                return Verdict(False, f"{said}; qemu-img reads something else")
            return Verdict(None, f"{said}; qemu-img can't read it: {error}")
    return Verdict(True, f"{said}; as qemu-img reads it")


@contextlib.contextmanager
def _unpacked(file: Path) -> Iterator[Path]:
    """Yield where a file is that is not compressed."""
    with file.open("rb") as opened:
        head = opened.read(8)
    unpack = next((unpack for magic, unpack in UNPACKERS.items() if head.startswith(magic)), None)
    if unpack is None:
        yield file
        return
    with tempfile.NamedTemporaryFile(prefix="novacron-") as plain:
        with unpack(file) as packed:
            shutil.copyfileobj(packed, plain)
        plain.flush()
        yield Path(plain.name)


async def _judge_package(file: Path, expected: ExpectedPackage | None, agent: Agent, scratch: Path) -> Verdict:
    try:
        read = await asyncio.to_thread(read_package, file, scratch)
        outcomes = [] if read.vm is None else await take_disks(agent, read)
    except ArchiveError as error:
        return judge_refused_package(str(error), expected)
    refused = next((outcome.why for outcome in outcomes if isinstance(outcome, Refused)), None)
    if refused is not None:
        return judge_refused_package(refused, expected)
    return judge_package(read, expected)


def judge_refused_package(why: str, expected: ExpectedPackage | None) -> Verdict:
    """Say whether it is right that a package was refused."""
    if expected is None:
        return Verdict(None, f"not in the table; refused: {why}")
    right = bool(expected.refused) and expected.refused in why
    wanted = f"with {expected.refused!r}" if expected.refused else "not at all"
    return Verdict(right, f"refused: {why}" + ("" if right else f"; right is: refused {wanted}"), expected.kind)


def judge_package(read: ReadPackage, expected: ExpectedPackage | None) -> Verdict:
    """Say whether the VM that a package became is right."""
    fields, macs, dropped = read.vm_fields()
    disks = tuple(disk_words(disk) for disk in read.machine.disks)
    said = f"taken{' with blank disks' if read.built else '' if read.vm else ' without disks'}: {fields}, {list(disks)}"
    if expected is None:
        return Verdict(None, f"not in the table; {said}, MAC {list(macs)}, dropped {list(dropped)}")
    wrong = [
        f"{what} is {found!r}, right is {wanted!r}"
        for what, found, wanted in (
            ("refusal", "", expected.refused), ("name", read.machine.name, expected.vm),
            ("fields", fields, expected.fields), ("disks", disks, expected.disks), ("MACs", macs, expected.macs),
        )
        if found != wanted
    ]  # fmt: skip
    wrong += [f"nothing is said of {words!r}" for words in _unsaid(expected.dropped, dropped)]
    return Verdict(not wrong, "; ".join([said, *wrong]), expected.kind)


def _unsaid(words: tuple[str, ...], dropped: tuple[str, ...]) -> Iterator[str]:
    """Yield the words of which no sentence has been said, or one less than there are words."""
    left = list(dropped)
    for each in words:
        sentence = next((sentence for sentence in left if each in sentence), None)
        if sentence is None:
            yield each
        else:
            left.remove(sentence)


def disk_words(disk: OvfDisk) -> str:
    """Return a disk as the table has it: ``FILE SIZE``, with ``/CHUNK`` if it is in pieces; blank ones have no file."""
    pieces = "" if disk.chunk_bytes is None else f"/{disk.chunk_bytes}"
    return f"{disk.href or ''} {disk.size_bytes}{pieces}"


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file. Raises OSError."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


async def run(directory: Path, expected: Table, only: str = "") -> Counter[tuple[str, str]]:
    """Try the samples in a directory, print a line for each, and return how many of each kind came out how."""
    counts = Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory(prefix="novacron-samples-") as scratch:
        async with agent(Path(scratch)) as imports:
            for file in samples(directory):
                if only not in str(file.relative_to(directory)):
                    continue
                verdict = await judge(file, expected, imports)
                mark = {True: "right", False: "WRONG", None: "?"}[verdict.right]
                counts[verdict.kind or "not in the table", mark] += 1
                print(f"{mark:5} {file.relative_to(directory)}: {verdict.said}", flush=True)
    return counts


def summary(counts: Mapping[tuple[str, str], int]) -> Iterator[str]:
    for kind in sorted({kind for kind, _ in counts}):
        marks = ((mark, counts.get((kind, mark), 0)) for mark in ("right", "WRONG", "?"))
        yield f"{kind}: " + ", ".join(f"{count} {mark}" for mark, count in marks if count)
    for mark in ("right", "WRONG", "?"):
        yield f"{sum(count for (_, each), count in counts.items() if each == mark)} {mark}"


def main() -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Bring samples in with the product's own code, and compare.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", default="", help="samples whose path has this text")
    parser.add_argument("--table", type=Path, default=TABLE, help="what is right")
    arguments = parser.parse_args()
    logs.set_up("samples", "error")  # a refusal is what is looked for here
    counts = asyncio.run(run(arguments.directory.resolve(), table(arguments.table), arguments.only))
    print("\n".join(summary(counts)))
    return 1 if any(mark == "WRONG" for _, mark in counts) else 0


if __name__ == "__main__":
    sys.exit(main())
