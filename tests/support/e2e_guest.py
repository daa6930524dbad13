"""Commands that end-to-end tests run inside a guest."""

from __future__ import annotations

import hashlib
import time

from lab.platform import Platform
from tests.e2e.conftest import (
    Object,
    typed,
)


def _mark() -> tuple[str, str]:
    """Return a word that only the next answer begins with, and how it is typed: the echo of that is another word."""
    mark = hashlib.md5(str(time.monotonic_ns()).encode()).hexdigest()[:8]  # noqa: S324 (a mark, no secret)
    return mark, f"{mark[:4]}''{mark[4:]}"


def checksum(victim: Platform, vm: Object) -> str:
    """Return the checksum of a guest's memory contents, computed inside the guest."""
    mark, as_typed = _mark()
    line = typed(victim, vm, f"echo {as_typed}-$(md5sum < /run/random | cut -c1-32)", f"{mark}-")
    digest = line.partition("-")[2].strip()
    assert len(digest) == 32
    return digest


def run_in_guest(victim: Platform, vm: Object, command: str) -> str:
    """Run a command in the guest; return the last word of what it prints."""
    mark, as_typed = _mark()
    return typed(victim, vm, f"echo {as_typed}-$({command})", f"{mark}-", 90).partition("-")[2].split()[0]


def disk_sum(victim: Platform, vm: Object) -> str:
    """Return the checksum of the whole disk, taken inside the guest, past its cache."""
    return run_in_guest(victim, vm, "sync; echo 3 > /proc/sys/vm/drop_caches; md5sum /dev/vda")


def write_random_data(victim: Platform, vm: Object, mib: int = 4, seek_mib: int = 8) -> str:
    """Let the guest write random data over part of its disk; return the disk's checksum."""
    where = f"bs=1M count={mib} seek={seek_mib}"
    run_in_guest(victim, vm, f"dd if=/dev/urandom of=/dev/vda {where} conv=notrunc,fsync 2>&1; echo done")
    return disk_sum(victim, vm)
