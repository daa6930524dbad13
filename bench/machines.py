"""The figures of one machine's life: many at once, snapshots, idling, Debian, imports. ``script/bench machines``."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bench.report import Figure, median, parser, report
from lab.hosts import lab, missing
from lab.images import images_dir
from lab.platform import Platform, clean_up_when_ended, default_cache, open_directory, platform, until
from novacron.client import Client
from novacron.disk import cloud_init, debian
from novacron.disk.images import LocalImage, scan
from novacron.model.cloud_init import Seed
from novacron.model.node import AcceleratorKind
from novacron.qemu.command import QemuConfig, command, console_log_path
from novacron.qemu.guest import GuestAgent, GuestSilent
from novacron.qemu.nics import QemuNic

NODE = "host-a"
READY = "tiny guest: ready"
MANY_MIB, MANY_OVER_BARE = 96, 1.3
"""Debian's kernel does not boot with 64 MiB, nor with 72."""
TOGETHER = 8
"""How many VMs are asked for at once; bare QEMUs are started by as many."""
IDLE_PERCENT, AGENT_MIB = 3.0, 200.0
DISK_PAUSE_MS, MEMORY_PAUSE_MS, MEMORY_MIB = 100.0, 1500.0, 256
CLONE_S = 1.0
DEBIAN_MIB, DEBIAN_OVER_BARE, DEBIAN_S_MAX = 1024, 1.1, 300.0
IMPORT_SHARE = 0.6
MAC = "52:54:00:ba:5e:00"
PARTS = ("many", "snapshots", "clones", "imports", "debian")


class Size(NamedTuple):
    """How much is measured."""

    vms: int
    rounds: int
    """Of snapshots and clones."""
    imports: int
    import_bytes: int = 1_500_000_000
    settle_s: float = 10.0
    idle_s: float = 20.0


FULL, QUICK, SMOKE = Size(50, 5, 3), Size(10, 3, 1), Size(2, 1, 1, 10_000_000, 0.5, 1.0)


@contextlib.contextmanager
def bare(directory: Path, image: LocalImage, memory_mib: int, *, agent: bool = False) -> Iterator[None]:
    """Run QEMU alone, configured as NovaCron configures it."""
    (directory / "run").mkdir(parents=True)
    descriptors = []
    disk = None
    if image.disk is not None:
        disk = directory / "disk.qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(image.disk), str(disk)], check=True
        )
    guest = seed = None
    if agent:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.bind(str(directory / "guest.sock"))
            server.listen(1)
            guest = server.detach()
        cd = cloud_init.seed_cd(Seed(), id="bare", name="bare", macs=[MAC], address=None)
        cloud_init.build(directory / "seed.iso", cd)
        seed = os.open(directory / "seed.iso", os.O_RDONLY)
        descriptors = [guest, seed]
    config = QemuConfig(
        "bare", directory, 1, memory_mib, "pc", AcceleratorKind.TCG, image.kernel, image.initrd, image.cmdline,
        (QemuNic(MAC, None),), disk, guest=guest, seed=seed, display=not agent,
    )  # fmt: skip
    process = subprocess.Popen(
        command(config, incoming=False), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=descriptors
    )
    for descriptor in descriptors:
        os.close(descriptor)
    try:
        yield
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)


def booted(logs: list[Path], count: int) -> None:
    """Wait until ``count`` guests have booted."""
    until(
        lambda: sum(READY in log.read_text(errors="replace") for log in logs if log.exists()) >= count,
        f"{count} guests have booted", 600,
    )  # fmt: skip


def many_figures(p: Platform, directory: Path, image: LocalImage, size: Size) -> list[Figure]:
    """Many VMs on one node, against as many bare QEMUs; and what the agent uses while they idle."""
    count = size.vms
    started = time.monotonic()
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(TOGETHER) as together:
        places = [directory / f"bare{number}" for number in range(count)]
        for opened in together.map(lambda place: _entered(bare(place, image, MANY_MIB)), places):
            stack.callback(opened.__exit__, None, None, None)
        booted([console_log_path(place) for place in places], count)
        peer = time.monotonic() - started
    config = p.client.config
    vms = p.directory / NODE / "agent" / "vms"
    started = time.monotonic()
    with ThreadPoolExecutor(TOGETHER) as together:

        def create(number: int) -> str:
            vm = Client(config).create_vm(name=f"many-{number}", image="tiny", memory_mib=MANY_MIB, node=NODE)
            return str(vm["id"])

        ids = list(together.map(create, range(count)))
    booted([vms / id / "console.log" for id in ids], count)
    own = time.monotonic() - started
    time.sleep(size.settle_s)
    agent = p.agents[NODE].process
    assert agent is not None
    percent, mib = usage(agent.pid, size.idle_s)
    for id in ids:
        p.client.delete("vms", id)
    until(lambda: not list(p.client.list("vms")), "the VMs are deleted", 120)
    return [
        Figure(f"{count} bare QEMUs of {MANY_MIB} MiB, started and booted", peer, "s"),
        Figure(f"{count} VMs of {MANY_MIB} MiB, created and booted", own, "s"),
        Figure("  ... over bare QEMU", own / peer, "x", MANY_OVER_BARE),
        Figure(f"agent's processor with {count} idle VMs, of a core", percent, "%", IDLE_PERCENT),
        Figure(f"agent's memory with {count} idle VMs", mib, "MiB", AGENT_MIB),
    ]


C = TypeVar("C", bound=contextlib.AbstractContextManager[Any])


def _entered(opened: C) -> C:
    opened.__enter__()
    return opened


def usage(pid: int, idle_s: float) -> tuple[float, float]:
    """Return the share of a core (percent) and the memory (MiB) that a process uses while nothing is asked of it."""

    def ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(idle_s)
    percent = 100 * (ticks() - before) / os.sysconf("SC_CLK_TCK") / idle_s
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    pss_kib = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return percent, pss_kib / 1024


def snapshot_figures(p: Platform, rounds: int) -> list[Figure]:
    """For how long a guest stands still while its disk, and its memory, are kept."""
    vm = p.client.create_vm(name="kept", image="disk", memory_mib=MEMORY_MIB, node=NODE)
    booted([p.directory / NODE / "agent" / "vms" / vm["id"] / "console.log"], 1)
    pauses: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds):
        for memory in (False, True):
            snapshot = p.client.create_snapshot("kept", f"s{number}{'m' if memory else 'd'}", memory)
            done = p.client.wait(
                "snapshots", snapshot["id"], lambda s: s is None or s["phase"] in ("ready", "failed"), 60
            )
            assert done is not None and done["phase"] == "ready", done
            pauses[memory].append(done["pause_ms"])
    p.cli("vm", "delete", "kept", "--wait", "--yes")
    return [
        median("pause of the guest for a disk snapshot", pauses[False], "ms", DISK_PAUSE_MS),
        median(f"pause of the guest for a memory snapshot of {MEMORY_MIB} MiB", pauses[True], "ms", MEMORY_PAUSE_MS),
    ]


def clone_figures(p: Platform, rounds: int) -> list[Figure]:
    """A running VM is cloned, and the clone is started."""
    vm = p.client.create_vm(name="source", image="disk", memory_mib=128, node=NODE)
    booted([p.directory / NODE / "agent" / "vms" / vm["id"] / "console.log"], 1)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds):
        for linked in seconds:
            started = time.monotonic()
            clone = p.client.clone_vm("source", f"c{number}{'l' if linked else 'f'}", linked=linked)
            done = p.client.wait("vms", clone["id"], lambda now: now is None or now["status"]["state"] == "running", 60)
            seconds[linked].append(time.monotonic() - started)
            assert done is not None
            p.cli("vm", "delete", clone["name"], "--wait", "--yes")
    p.cli("vm", "delete", "source", "--wait", "--yes")
    return [
        median("linked clone of a running VM, until it is started", seconds[True], "s", CLONE_S),
        median("full clone of it", seconds[False], "s"),
    ]


def debian_figures(p: Platform, directory: Path, image: LocalImage, rounds: int) -> list[Figure]:
    """Debian until its guest agent answers, bare QEMU and NovaCron in turn."""
    own, peer = [], []
    for number in range(rounds):
        started = time.monotonic()
        with bare(directory / "debian", image, DEBIAN_MIB, agent=True):
            asyncio.run(_answers(directory / "debian" / "guest.sock"))
            peer.append(time.monotonic() - started)
        started = time.monotonic()
        p.cli(
            "vm", "create", f"debian-{number}", "--image", "debian", "--memory", str(DEBIAN_MIB), "--node", NODE,
            "--wait=agent", "--timeout", str(DEBIAN_S_MAX), "--no-display",
        )  # fmt: skip
        own.append(time.monotonic() - started)
        p.cli("vm", "delete", f"debian-{number}", "--wait", "--yes")
    ratios = [a / b for a, b in zip(own, peer, strict=True)]
    return [
        median("bare QEMU until Debian's guest agent answers", peer, "s"),
        median("vm create --wait=agent, Debian", own, "s"),
        median("  ... over bare QEMU", ratios, "x", DEBIAN_OVER_BARE),
    ]


async def _answers(path: Path) -> None:
    agent = GuestAgent(path)
    async with asyncio.timeout(DEBIAN_S_MAX):
        while True:
            with contextlib.suppress(GuestSilent):
                await agent.name()
                return
            await asyncio.sleep(0.2)


def import_figures(p: Platform, size: Size) -> list[Figure]:
    """A raw disk becomes an image, its checksum proved, against ``qemu-img convert`` alone."""
    root = p.directory / NODE / "imports"
    root.mkdir(exist_ok=True)
    source, target = root / "large.raw", root / "converted.raw"
    digest = hashlib.sha256()
    with source.open("wb") as file:
        for _ in range(size.import_bytes // 1_000_000):
            piece = os.urandom(1_000_000)
            file.write(piece)
            digest.update(piece)
    own, peer = [], []
    for number in range(size.imports):
        os.sync()
        started = time.monotonic()
        subprocess.run(
            ["qemu-img", "convert", "-f", "raw", "-O", "raw", "-t", "writeback", str(source), str(target)], check=True
        )
        peer.append(size.import_bytes / 1e6 / (time.monotonic() - started))
        target.unlink()
        os.sync()
        started = time.monotonic()
        begun = p.client.import_image(
            f"large-{number}", path="large.raw", format="raw", sha256=digest.hexdigest(), node=NODE
        )
        done = p.client.wait("imports", begun["id"], lambda now: now is None or now["finished_at"] is not None, 300)
        own.append(size.import_bytes / 1e6 / (time.monotonic() - started))
        assert done is not None and done["phase"] == "done", done
        p.client.delete_image(f"large-{number}")
    return [
        median(f"qemu-img convert of a {size.import_bytes / 1e9:g} GB raw image", peer, "MB/s"),
        median("import of it, with its checksum", own, "MB/s"),
        median("  ... of qemu-img's speed", [a / b for a, b in zip(own, peer, strict=True)], "x", IMPORT_SHARE,
               at_least=True),
    ]  # fmt: skip


def main() -> None:
    line = parser("machines", __doc__, "fewer rounds and VMs, without Debian")
    line.add_argument("--only", nargs="*", choices=PARTS)
    line.add_argument("--rounds", type=int, default=3, help="of Debian")
    options = line.parse_args()
    clean_up_when_ended()
    if lacking := missing():
        sys.exit(f"this machine can't emulate hosts: {', '.join(lacking)}")
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    parts = options.only or (PARTS if size is FULL else PARTS[:-1])
    images = images_dir()
    if "debian" in parts and not (images / "debian").exists():
        print("building the Debian image", flush=True)
        debian.build(images / "debian")
    scanned = scan(images)[0]
    figures: list[Figure] = []
    with (
        open_directory("nvb-") as directory,
        lab(f"nvb{os.getpid()}", default_cache()) as hosts,
        platform(directory / "p", hosts, images) as p,
    ):
        measure: dict[str, Callable[[], list[Figure]]] = {
            "many": lambda: many_figures(p, directory, scanned["tiny"], size),
            "snapshots": lambda: snapshot_figures(p, size.rounds),
            "clones": lambda: clone_figures(p, size.rounds),
            "imports": lambda: import_figures(p, size),
            "debian": lambda: debian_figures(p, directory, scanned["debian"], options.rounds),
        }
        for part in PARTS:
            if part in parts:
                figures += measure[part]()
                print(f"{part}: done", flush=True)
    report("machines", figures, options.json, smoke=options.smoke)


if __name__ == "__main__":
    main()
