"""Guests that migrations are measured with: different contents, sizes and ways to write; and those that you bring.

A guest that you bring is a directory: ``files/`` is what it holds in memory, twice; ``guest.toml`` says the rest.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from novacron.disk import tiny

FILE_BYTES_MAX = 8 << 20
BROUGHT_BYTES_MAX = 1 << 30
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
MEMORY_MIB_MIN, MEMORY_MIB_MAX = 128, 16_384

WORK = """#!/bin/busybox sh
cp -r /data /run 2>/dev/null
dd if=/dev/urandom of=/run/random bs=1M count=%d 2>/dev/null
/workload %s >/dev/null 2>&1 &
"""


class GuestInvalid(Exception):
    """A directory that can't be made a guest: says what of it is wrong."""


class Workload(NamedTuple):
    """What the guest does while it is moved."""

    region_mib: int
    """Text that it writes to."""
    pages_per_s: int
    whole_percent: int
    """So many of the pages are rewritten as a whole; of the others, 128 bytes."""


class MeasuredGuest(NamedTuple):
    """A guest, and how it is made."""

    name: str
    memory_mib: int
    random_mib: int
    workload: Workload
    files: Callable[[], dict[str, bytes]]
    """What it holds in memory, by path."""

    def build(self, target: Path) -> None:
        """Make its image in ``target``, unless it is there."""
        work = WORK % (self.random_mib, " ".join(map(str, self.workload)))
        extra = {"workload": workload_program(), "work": work.encode()}
        tiny.build(target, extra | self.files(), f"guest for measurements: {self.name}")


def workload_program() -> bytes:
    """Return the program that writes to a guest's memory."""
    source = Path(__file__).parent / "workload.c"
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "workload"
        subprocess.run(["cc", "-O2", "-Wall", "-static", "-o", str(program), str(source)], check=True)
        return program.read_bytes()


def take_each(folder: str, paths: Iterable[Path], limit_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Return names and contents of files, up to a limit in bytes."""
    total = 0
    for number, path in enumerate(paths):
        if total >= limit_bytes:
            break
        if path.is_symlink() or not path.is_file() or path.stat().st_size > FILE_BYTES_MAX:
            continue
        data = path.read_bytes()
        yield f"{folder}/{number}-{path.name}", data
        total += len(data)


def _libraries() -> list[Path]:
    return sorted(Path("/usr/lib/x86_64-linux-gnu").rglob("*.so*"))


def _programs() -> dict[str, bytes]:
    """Return libraries and programs of this host, the last of them by name."""
    paths = sorted([*_libraries(), *Path("/usr/bin").iterdir()], reverse=True)
    return dict(take_each("data/programs", paths, 140 << 20))


def _documents() -> dict[str, bytes]:
    """Return text of this host."""
    return dict(take_each("data/text", sorted(Path("/usr/share").rglob("*")), 60 << 20))


def _few() -> dict[str, bytes]:
    return dict(take_each("data/few", _libraries(), 12 << 20))


FURTHER = (
    MeasuredGuest("programs", 1024, 24, Workload(32, 1024, 20), _programs),
    MeasuredGuest("documents", 512, 4, Workload(16, 2048, 100), _documents),
    MeasuredGuest("small", 256, 2, Workload(4, 256, 0), _few),
)
"""Those that are measured beside ``mixed``."""


def brought(directory: Path) -> MeasuredGuest:
    """Return the guest that a directory describes. Raises GuestInvalid."""
    settings = directory / "guest.toml"
    try:
        table = tomllib.loads(settings.read_text())
    except OSError as error:
        raise GuestInvalid(
            f"{settings} can't be read: {error.strerror}. It says memory_mib, random_mib and workload, for example"
            " workload = [2, 512, 50]: MiB that the guest writes to, pages a second, percent of them rewritten whole"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise GuestInvalid(f"{settings} is no TOML: {error}") from error
    if not NAME.fullmatch(directory.resolve().name):
        raise GuestInvalid(f"{directory}: its name has to consist of lower-case letters, digits and hyphens")
    memory_mib = _number(settings, table, "memory_mib", MEMORY_MIB_MIN, MEMORY_MIB_MAX)
    random_mib = _number(settings, table, "random_mib", 0, memory_mib)
    workload = table.get("workload")
    if not isinstance(workload, list) or len(workload) != 3 or not all(type(n) is int and n >= 0 for n in workload):
        raise GuestInvalid(f"{settings}: workload has to be three numbers, for example [2, 512, 50]")
    if not 1 <= workload[0] <= memory_mib or workload[2] > 100:
        raise GuestInvalid(
            f"{settings}: workload: {workload[0]} MiB of {memory_mib} are written, {workload[2]} % whole"
        )
    files = directory / "files"
    size = sum(path.stat().st_size for path in files.rglob("*") if path.is_file())
    if not 0 < size <= BROUGHT_BYTES_MAX or 2 * size >= memory_mib << 20:
        raise GuestInvalid(
            f"{files} holds {size / 1e6:.0f} MB: the guest has it in memory twice, and memory_mib is {memory_mib}"
        )
    return MeasuredGuest(directory.resolve().name, memory_mib, random_mib, Workload(*workload), lambda: _all(files))


def _number(path: Path, table: dict[str, Any], name: str, least: int, most: int) -> int:
    value = table.get(name)
    if type(value) is not int or not least <= value <= most:
        raise GuestInvalid(f"{path}: {name} has to be a number from {least} to {most}, and is {value!r}")
    return value


def _all(files: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(files.rglob("*")) if path.is_file())
    return {f"data/{number}-{path.name}": path.read_bytes() for number, path in enumerate(paths)}
