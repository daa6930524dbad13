"""Build the images that the demo, tests and benchmarks boot, once: ``python -m lab.images``."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from lab.measured_guests import FURTHER, WORK, MeasuredGuest, take_each, workload_program
from lab.platform import default_cache
from novacron.disk import tiny

BINARIES_BYTES = 36 << 20
TEXT_BYTES = 28 << 20
RANDOM_MIB = 24
BLOCK = 4096
WORKLOADS = {
    # region in MiB, pages written a second, percent of them rewritten as a whole
    "mixed": (2, 512, 50),
    "writer": (128, 8192, 50),
}

DISK_MIB, DISK_DATA_MIB, DISK_WRITTEN_MIB = 1536, 600, 48
"""The disk of ``database``: how large, how much of real files is on it, and how much its guest writes to it at once."""
DISK_WORK = """dd if=/dev/vda of=/dev/vda bs=1M count=%d skip=16 seek=%d conv=notrunc,fsync 2>/dev/null
( while :; do
    dd if=/dev/urandom of=/dev/vda bs=64k count=1 seek=$((RANDOM %% 8192)) conv=notrunc,fsync 2>/dev/null
    sleep 1
done ) &
"""

NOISE_MIB = 40
NOISE = """#!/bin/busybox sh
dd if=/dev/urandom of=/run/random bs=1M count=%d 2>/dev/null
"""


AGENT_MODULES = ("virtio_blk", "isofs", "virtio_console", "tpm_crb", "efivarfs")
AGENT_WORK = """#!/bin/busybox sh
mkdir -p /cd /data /sbin /var/run
printf '#!/bin/sh\\ncase "$*" in *-r*) exec reboot -f ;; esac\\nexec poweroff -f\\n' > /sbin/shutdown
chmod +x /sbin/shutdown
for device in /dev/vd?; do
  mount -t iso9660 -o ro $device /cd 2>/dev/null && break
done
hostname $(sed -n 's/.*"local-hostname": "\\(.*\\)".*/\\1/p' /cd/meta-data)
for file in meta-data user-data network-config; do echo "seed $file: $(cat /cd/$file | tr -d '\\n')"; done
mount -t ext4 /dev/vda /data 2>/dev/null
port=/dev/virtio-ports/org.qemu.guest_agent.0
mkdir -p /dev/virtio-ports
ln -sf /dev/$(basename $(dirname $(grep -l org.qemu.guest_agent.0 /sys/class/virtio-ports/*/name))) $port
if grep -q hostile /cd/user-data; then
  sh /cd/user-data $port >/dev/null 2>&1 &
else
  /qemu-ga -p $port -t /run -f /run/qga.pid </dev/null >/dev/null 2>&1 &
fi
"""
"""A guest that shows what it is told at its first boot, and runs QEMU's guest agent, or what the user data says."""

SMALL_DISK_MIB, SMALL_DISK_DATA_MIB = 64, 16
"""The disk of ``disk``: how large, and how much of it is not empty."""


def images_dir() -> Path:
    """Return the directory of images, with the tiny guest in it; with ``noisy``: one that holds random data too, so
    that a migration of it takes its time; with ``disk``: one whose VMs have a small disk; with ``agent``: one that runs
    a guest agent; with ``balloon``: one that does, and gives memory back; and with ``filesystem``: one that has a file
    system on a disk."""
    directory = default_cache() / "images"
    with _alone(default_cache()):
        _build(directory)
    return directory


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Let one process at a time build what is kept in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(directory: Path) -> None:
    if not (directory / "tiny").exists():
        print("setup: building the tiny guest image: Debian's cloud kernel and busybox", flush=True)
    tiny.build(directory / "tiny")
    noise = NOISE % NOISE_MIB
    tiny.build(directory / "noisy", {"work": noise.encode()}, "test guest with memory that has to be sent")
    tiny.build(directory / "disk", None, "test guest with a disk", _small_disk)
    if not all(tiny.is_built(directory / name) for name in ("agent", "filesystem", "balloon")):
        extra = {"work": AGENT_WORK.encode(), **_guest_agent()}
        tiny.build(directory / "agent", extra, "test guest with a guest agent", None, AGENT_MODULES)
        modules = (*AGENT_MODULES, "virtio_balloon")
        tiny.build(directory / "balloon", extra, "test guest that gives memory back", None, modules)
        tiny.build(
            directory / "filesystem", extra, "test guest with a guest agent and a file system", _file_system,
            (*AGENT_MODULES, "ext4"),
        )  # fmt: skip


def guests_dir() -> Path:
    """Return the directory of images, with the guests in it that DWCP is measured with.

    ``mixed`` holds real programs, libraries and text, copies of some of them, and random data made when it boots, and
    writes 2 MB of pages a second; ``writer`` writes 32 MB of pages a second; ``database`` is ``mixed`` with a disk of
    real files, of which it has copied a part, and to which it writes 64 KiB every second.
    """
    directory = images_dir()
    for name, arguments in (*WORKLOADS.items(), ("database", WORKLOADS["mixed"])):
        if (directory / name).exists():
            continue
        print(f"setup: building the guest image {name}", flush=True)
        work = WORK % (RANDOM_MIB, " ".join(str(argument) for argument in arguments))
        if name == "database":
            work += DISK_WORK % (DISK_WRITTEN_MIB, DISK_DATA_MIB + DISK_WRITTEN_MIB)
        extra = {"workload": workload_program(), "work": work.encode()}
        if name in ("mixed", "database"):
            extra |= _real_files()
        fill = _large_disk if name == "database" else None
        tiny.build(directory / name, extra, f"guest for measurements: {name}", fill)
    return directory


def further_guests(brought: Iterable[MeasuredGuest] = ()) -> dict[str, MeasuredGuest]:
    """Build the guests that are measured beside ``mixed``, or instead those that somebody brought; return them by the
    names of their images."""
    directory, guests = images_dir(), {}
    for guest in brought:
        guests[f"brought-{guest.name}"] = guest
        shutil.rmtree(directory / f"brought-{guest.name}", ignore_errors=True)  # its files may be others now
    guests = guests or {guest.name: guest for guest in FURTHER}
    with _alone(default_cache()):
        for name, guest in guests.items():
            if not tiny.is_built(directory / name):
                print(f"setup: building the guest image {name}", flush=True)
                guest.build(directory / name)
    return guests


def _guest_agent() -> dict[str, bytes]:
    """Return QEMU's guest agent, with the libraries that it needs, under the names that they have in a guest."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "root"
        for package in ("qemu-guest-agent", "libglib2.0-0", "liburing2", "libudev1", "libnuma1", "libpcre2-8-0"):
            shutil.copytree(tiny.download(Path(scratch), package), root, symlinks=True, dirs_exist_ok=True)
        program = root / "usr/sbin/qemu-ga"
        paths = {path.name: path for path in root.rglob("*.so*")}
        files = {"qemu-ga": program.read_bytes()}
        lines = subprocess.run(
            ["ldd", str(program)], check=True, capture_output=True, text=True,
            env={"LD_LIBRARY_PATH": ":".join(sorted({str(path.parent) for path in paths.values()}))},
        ).stdout.splitlines()  # fmt: skip
        for line in lines:
            words = line.split()
            path = Path(words[2] if "=>" in words else words[0])
            if path.is_absolute():
                name = words[0].lstrip("/") if "=>" not in words else f"lib/x86_64-linux-gnu/{words[0]}"
                files[name] = path.read_bytes()
        return files


def _small_disk(path: Path) -> None:
    """Write numbered blocks, each other than all others, and leave the rest a hole."""
    with path.open("wb") as file:
        for number in range(SMALL_DISK_DATA_MIB << 8):
            file.write(hashlib.sha256(number.to_bytes(4, "big")).digest() * 128)
        file.truncate(SMALL_DISK_MIB << 20)


def _file_system(path: Path) -> None:
    """Make an empty file system."""
    with path.open("wb") as file:
        file.truncate(SMALL_DISK_MIB << 20)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", str(path)], check=True)


def _large_disk(path: Path) -> None:
    fill_with_real_files(path, DISK_MIB, DISK_DATA_MIB)


def fill_with_real_files(path: Path, disk_mib: int, data_mib: int) -> None:
    """Write real files of this host, each from a block of its own, and leave the rest a hole."""
    everything = sorted(Path("/usr/lib").rglob("*"))
    with path.open("wb") as file:
        for _, data in take_each("", everything, data_mib << 20):
            if file.tell() >= data_mib << 20:
                break
            file.write(data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0"))
        if file.tell() < data_mib << 20:
            raise RuntimeError(f"this host has less than {data_mib} MiB of files in /usr/lib")
        file.truncate(disk_mib << 20)


def _real_files() -> dict[str, bytes]:
    """Return programs and text of this host, in a fixed order."""
    shared = sorted(Path("/usr/lib/x86_64-linux-gnu").glob("*.so*"))
    programs = sorted(Path("/usr/bin").iterdir())
    texts = sorted(Path("/usr/lib/python3").rglob("*.py")) + sorted(
        Path(f"/usr/lib/python3.{sys.version_info[1]}").rglob("*.py")
    )
    files = dict(_take("data/lib", shared, BINARIES_BYTES // 2))
    files |= _take("data/bin", programs, BINARIES_BYTES // 2)
    files |= _take("data/text", itertools.chain(texts, sorted(Path("/usr/share/doc").rglob("*"))), TEXT_BYTES)
    return files


def _take(folder: str, paths: Iterable[Path], limit_bytes: int) -> dict[str, bytes]:
    return dict(take_each(folder, paths, limit_bytes))


if __name__ == "__main__":
    images_dir()
