"""Backups of a VM that runs, against restic and the same disk as a raw file. ``script/bench backup``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bench.backup_live import LiveRestored, live_restores
from bench.report import Figure, median, parser, report
from lab.guest import CounterClient, shell
from lab.hosts import lab, missing
from lab.images import fill_with_real_files, images_dir
from lab.platform import Platform, clean_up_when_ended, default_cache, open_directory, platform, until
from novacron.disk.images import MANIFEST, Manifest, describe

NODE, ADDRESS, IMAGE, FILES_IMAGE, LIVE_IMAGE = "host-a", "198.19.0.10", "backup", "files", "live"
WANTED, WANTED_BYTES = "wanted.bin", 1 << 20
"""The file that is fetched out of a backup."""
BLOCK = 64 << 10
MEMORY_MIB, READY = 256, "tiny guest: ready"
BACKUP_S_MAX = 3600.0
WRITE_S_MAX = 900.0
FIRST_FASTER, FIRST_BYTES = 2.0, 1.05
READ, WRITTEN, AGAIN_FASTER = 1.2, 1.5, 10.0
FREEZE_MS = 100.0
FILE_S, FETCHED = 10.0, 1.1
LIVE = 1.5
FETCHED_BYTES = re.compile(r"fetched_bytes\D{1,3}([0-9]+)")
"""In an agent's log, of a disk that was restored."""
WRITES = (
    "awk 'BEGIN {{ srand({seed}); for (i = 0; i < {count}; i++) print int(rand() * {blocks}) }}' | while read at;"
    " do dd if=/dev/urandom of=/dev/vda bs=64k count=1 seek=$at conv=notrunc 2>/dev/null; done; sync; echo done"
)


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    disk_mib: int
    used_mib: int
    written_mib: int
    settle_s: float = 5.0


FULL, QUICK, SMOKE = Size(3, 4096, 1430, 100), Size(1, 2048, 700, 50, 2.0), Size(1, 64, 8, 1, 0.2)


class Measured(NamedTuple):
    """What one backup took."""

    seconds: float
    stored_bytes: int
    """By how much its repository has grown."""


class Round(NamedTuple):
    """One first backup and one increment, by NovaCron and by restic."""

    first: Measured
    peer_first: Measured
    again: Measured
    peer_again: Measured
    changed_bytes: int
    read_bytes: int
    gap_ms: float
    """The longest that a client of the guest saw while either was made."""


class Restored(NamedTuple):
    """One restore on a node that has the VM's image."""

    seconds: float
    fetched_bytes: int
    differs_bytes: int
    """In whole blocks, from the image."""


def build_files_image(directory: Path, size: Size) -> None:
    """Make the image of a disk with an ext4 file system that real files fill in part."""
    image, tree = directory / "images" / FILES_IMAGE, directory / "tree"
    shutil.copytree(images_dir() / "disk", image)
    (tree / "deep" / "deeper").mkdir(parents=True)
    fill_with_real_files(tree / "rest.bin", size.used_mib, size.used_mib)
    (tree / "deep" / "deeper" / WANTED).write_bytes(os.urandom(WANTED_BYTES))
    disk = image / "disk.raw"
    disk.unlink()
    subprocess.run(["mkfs.ext4", "-q", "-d", str(tree), str(disk), f"{size.disk_mib}M"], check=True)
    shutil.rmtree(tree)
    _describe(image)


def build_image(directory: Path, size: Size, name: str = IMAGE, guest: str = "disk") -> Path:
    """Make the image of a guest with a disk that real files fill in part; return the directory of images."""
    image = directory / "images" / name
    shutil.copytree(images_dir() / guest, image)
    fill_with_real_files(image / "disk.raw", size.disk_mib, size.used_mib)
    _describe(image)
    return image.parent


def _describe(image: Path) -> None:
    manifest = msgspec.json.decode((image / MANIFEST).read_bytes(), type=Manifest)
    with_disk = msgspec.structs.replace(manifest, disk=describe(image / "disk.raw"))
    (image / MANIFEST).write_bytes(msgspec.json.encode(with_disk))


def fetch_files(p: Platform, directory: Path, size: Size) -> list[tuple[float, float]]:
    """Fetch a file out of a backup by command: how long it takes if the backup is not open yet, and if it is."""
    p.cli("vm", "create", "files", "--image", FILES_IMAGE, "--node", NODE, "--no-start")
    vm: Any = p.client.wait("vms", "files", lambda now: now is not None and now["status"]["state"] == "stopped", 60)
    repository: dict[str, Any] = p.client.create_backup_repository("bench-files")
    samples = []
    for _ in range(size.rounds):  # each of its own, as one that was looked into stays open for a while
        asked = p.client.back_up_vm(vm["id"], repository["id"])
        p.client.wait("backups", asked["id"], lambda now: now is None or now["phase"] != "making", BACKUP_S_MAX)
        time.sleep(size.settle_s)
        took = []
        for _ in range(2):
            file, began = directory / WANTED, time.monotonic()
            p.cli("backup", "pull", asked["id"], f"/deep/deeper/{WANTED}", str(file))
            took.append(time.monotonic() - began)
            if file.stat().st_size != WANTED_BYTES:
                raise RuntimeError(f"the file has {file.stat().st_size} bytes")
            file.unlink()
        samples.append((took[0], took[1]))
    p.cli("vm", "delete", "files", "--wait", "--yes")
    return samples


class Bench:
    """A VM, its repositories, and restic beside it."""

    def __init__(self, p: Platform, directory: Path, size: Size) -> None:
        self._p, self._directory, self._size = p, directory, size
        self._raw = directory / "disk.raw"

    def boot(self) -> dict[str, Any]:
        p = self._p
        p.cli("vm", "create", "web", "--image", IMAGE, "--memory", str(MEMORY_MIB), "--node", NODE,
              "--address", f"{ADDRESS}/24", "--wait")  # fmt: skip
        vm: dict[str, Any] = p.client.get("vms", "web")
        until(lambda: READY in p.console_log(vm), "the guest has booted", 120)
        return vm

    def round(self, vm: dict[str, Any], number: int) -> Round:
        """Measure a first backup and an increment."""
        size, peer = self._size, self._directory / f"restic-{number}"
        repository: dict[str, Any] = self._p.client.create_backup_repository(f"bench-{number}")
        password = self._p.client.backup_repository_password(repository["id"])
        self._restic(peer, "init")
        own, gaps = self._p.backup_dir / repository["id"], []
        client = CounterClient(self._p.lab.hosts[0], ADDRESS)
        until(lambda: client.last > 20, "the guest counts")
        first, backup, gap = self._own(vm, repository, client)
        gaps.append(gap)
        self._fetch(own, password, backup)
        peer_first = self._peer(peer)
        before = self._raw.rename(self._directory / "before.raw")
        count = size.written_mib * (1 << 20) // BLOCK
        command = WRITES.format(seed=number, count=count, blocks=size.disk_mib * (1 << 20) // BLOCK)
        if not shell(self._p.client, vm["id"], command, WRITE_S_MAX).endswith("done"):
            raise RuntimeError("the guest did not write")
        again, backup, gap = self._own(vm, repository, client)
        gaps.append(gap)
        client.close()
        if backup["result"]["mode"] != "incremental":
            raise RuntimeError(f"all of the disk was read: {backup['result']['mode_reason']}")
        self._fetch(own, password, backup)
        peer_again = self._peer(peer)
        changed = _changed_bytes(before, self._raw)
        for path in (before, self._raw):
            path.unlink()
        return Round(first, peer_first, again, peer_again, changed, backup["result"]["read_bytes"], max(gaps))

    def restore(self, vm: dict[str, Any], number: int) -> Restored:
        """Restore the VM's newest backup as another VM, where its image is."""
        backup = next(iter(self._p.client.list("backups", vm=vm["id"])))
        password = self._p.client.backup_repository_password(backup["repository"])
        self._fetch(self._p.backup_dir / backup["repository"], password, backup)
        differs = _changed_bytes(self._directory / "images" / IMAGE / "disk.raw", self._raw)
        self._raw.unlink()
        began = time.monotonic()
        self._p.cli("backup", "restore", backup["id"], f"again-{number}", "--no-start")
        seconds = time.monotonic() - began
        fetched = FETCHED_BYTES.findall(self._p.agents[NODE].log.read_text(errors="replace"))[-1]
        self._p.cli("vm", "delete", f"again-{number}", "--wait", "--yes")
        return Restored(seconds, int(fetched), differs)

    def _own(
        self, vm: dict[str, Any], repository: dict[str, Any], client: CounterClient
    ) -> tuple[Measured, dict[str, Any], float]:
        """Make a backup, from the request to the end; return the longest gap that the client saw, too."""
        time.sleep(self._size.settle_s)
        p, root = self._p, self._p.backup_dir / repository["id"]
        before, began = _bytes_in(root), time.monotonic()
        asked = p.client.back_up_vm(vm["id"], repository["id"])
        ended: Any = p.client.wait(
            "backups", asked["id"], lambda now: now is None or now["phase"] != "making", BACKUP_S_MAX
        )  # fmt: skip
        seconds = time.monotonic() - began
        if ended is None or ended["phase"] != "kept":
            raise RuntimeError(f"no backup was made: {ended and ended['error']}")
        if client.broken or client.missing_numbers():
            raise RuntimeError(f"the guest's client lost lines: {client.broken}")
        return Measured(seconds, _bytes_in(root) - before), ended, client.longest_gap_ms(began)

    def _fetch(self, root: Path, password: str, backup: dict[str, Any]) -> None:
        """Have the disk of a backup as a raw file with holes, from restic: so it is the disk that was backed up."""
        whole = self._directory / "whole.raw"
        with whole.open("wb") as file:
            self._restic(root, "dump", backup["result"]["snapshot"], "/vm/disk.raw", password=password, to=file)
        subprocess.run(["cp", "--sparse=always", str(whole), str(self._raw)], check=True)
        whole.unlink()

    def _peer(self, root: Path) -> Measured:
        """Let restic back the raw file up."""
        time.sleep(self._size.settle_s)
        before, began = _bytes_in(root), time.monotonic()
        self._restic(root, "backup", str(self._raw))
        return Measured(time.monotonic() - began, _bytes_in(root) - before)

    def _restic(self, root: Path, *arguments: str, password: str = "peer", to: Any = subprocess.DEVNULL) -> None:  # noqa: ANN401, S107 - what subprocess takes
        subprocess.run(
            ["restic", "-q", "--cache-dir", str(self._directory / "cache"), "--repo", str(root), *arguments],
            check=True, stdout=to, env={**os.environ, "RESTIC_PASSWORD": password},
        )  # fmt: skip


def _bytes_in(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def _changed_bytes(before: Path, after: Path) -> int:
    """Return how much two disks differ, in whole blocks."""
    changed = 0
    with before.open("rb") as old, after.open("rb") as new:
        while block := new.read(BLOCK):
            changed += len(block) * (block != old.read(BLOCK))
    return changed


def figures_of(
    rounds: list[Round],
    restores: list[Restored],
    files: list[tuple[float, float]],
    live: list[LiveRestored],
    size: Size,
) -> list[Figure]:
    first = f"first backup, {size.disk_mib} MiB disk, {size.used_mib} MiB used"
    again = f"increment after {size.written_mib} MiB of random 64 KiB writes"
    gap = "longest gap for a client of the guest, backups without quiesce"

    def ratio(name: str, samples: list[float], bound: float | None = None, *, at_least: bool = False) -> Figure:
        return median(f"  ... {name}", samples, "x", bound, at_least=at_least)

    return [
        median(f"{first}: restic, raw file", [r.peer_first.seconds for r in rounds], "s"),
        median(f"{first}: request to kept", [r.first.seconds for r in rounds], "s"),
        ratio("restic's time over it", [r.peer_first.seconds / r.first.seconds for r in rounds], FIRST_FASTER,
              at_least=True),
        ratio("bytes over restic's", [r.first.stored_bytes / r.peer_first.stored_bytes for r in rounds], FIRST_BYTES),
        median(f"{again}: restic, raw file", [r.peer_again.seconds for r in rounds], "s"),
        median(f"{again}: request to kept", [r.again.seconds for r in rounds], "s"),
        ratio("restic's time over it", [r.peer_again.seconds / r.again.seconds for r in rounds], AGAIN_FASTER,
              at_least=True),
        ratio("read from the disk over what changed", [r.read_bytes / r.changed_bytes for r in rounds], READ),
        ratio("written over what changed", [r.again.stored_bytes / r.changed_bytes for r in rounds], WRITTEN),
        ratio("written by restic over what changed", [r.peer_again.stored_bytes / r.changed_bytes for r in rounds]),
        median(gap, [r.gap_ms for r in rounds], "ms", FREEZE_MS),
        median("restore to a new VM where its image is: request to done", [r.seconds for r in restores], "s"),
        ratio("fetched over what differs from the image", [r.fetched_bytes / r.differs_bytes for r in restores],
              FETCHED),
        median(f"one file of 1 MiB out of a backup of a {size.disk_mib} MiB disk, by command",
               [cold for cold, _ in files], "s", FILE_S),
        median("  ... the next one", [warm for _, warm in files], "s"),
        median("the same VM from its image on the node: request to guest agent", [run.local_s for run in live], "s"),
        median(f"live restore, {size.written_mib} MiB of it across the WAN: request to guest agent",
               [run.live_s for run in live], "s"),
        ratio("over the same VM from its image", [run.live_s / run.local_s for run in live], LIVE),
        median("  ... request to all of the disk", [run.whole_s for run in live], "s"),
        median("  ... bytes of the disk that differ in the end", [run.differing_bytes for run in live], "B", 0),
    ]  # fmt: skip


def main() -> int:
    options = parser("backup", __doc__, "one round, with a smaller disk").parse_args()
    lacks = missing() + ([] if shutil.which("restic") else ["restic is not installed"])
    if lacks:
        print("this benchmark needs network namespaces and restic: " + "; ".join(lacks), file=sys.stderr)
        return 1
    clean_up_when_ended()
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    with open_directory("nvb-") as directory:
        images = build_image(directory, size)
        build_files_image(directory, size)
        build_image(directory, size, LIVE_IMAGE, "agent")
        with (
            lab(f"nvb{os.getpid()}", default_cache()) as hosts,
            platform(directory / "p", hosts, images) as p,
        ):
            bench = Bench(p, directory, size)
            vm = bench.boot()
            rounds, restores = [], []
            for number in range(size.rounds):
                rounds.append(bench.round(vm, number))
                restores.append(bench.restore(vm, number))
                print(f"round {number + 1}: done", flush=True)
            p.cli("vm", "delete", "web", "--wait", "--yes")
            live = live_restores(p, LIVE_IMAGE, size.written_mib, size.rounds)
            files = fetch_files(p, directory, size)
    report("backup", figures_of(rounds, restores, files, live, size), options.json, smoke=options.smoke)
    return 0


if __name__ == "__main__":
    sys.exit(main())
