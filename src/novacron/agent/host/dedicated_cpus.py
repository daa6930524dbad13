"""Which CPUs of this host belong to one VM alone. All other VMs share the rest, and so does what QEMU does beside the
vCPUs of a VM that has CPUs for itself.

Linux keeps a thread on CPUs (sched_setaffinity(2)); what a thread starts stays there, too. QEMU can't change that
itself: its seccomp filter forbids it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from novacron import private_file
from novacron.telemetry import logs

log = logs.get(__name__)

FILE = "cpus.json"
"""In a VM's directory: the CPUs that it has for itself, for the next agent."""
RESERVED = 1
"""CPUs that no VM gets for itself."""
NODES = Path("/sys/devices/system/node")
Cells = Sequence[frozenset[int]]
"""The CPUs of each NUMA node of the host."""


class TooFewCpus(Exception):
    """A VM can't have CPUs for itself: says how many are left."""


def cpu_list(text: str) -> frozenset[int]:
    """Return the CPUs that a list like ``0-3,8`` names (cpuset(7))."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def host_cells(root: Path = NODES) -> list[frozenset[int]]:
    """Return the CPUs of each NUMA node, as far as Linux says."""
    directories = sorted(root.glob("node[0-9]*"), key=lambda path: int(path.name[4:]))
    with contextlib.suppress(OSError, ValueError):
        return [cpu_list((directory / "cpulist").read_text()) for directory in directories]
    return []


def choose(free: Collection[int], count: int, cells: Cells) -> tuple[int, ...]:
    """Return so many free CPUs: of one NUMA node if one has enough, of the fullest such, else of as few as possible.

    The highest numbers come first: Linux does most of its own work on the lowest. Raises TooFewCpus.
    """
    if count > len(free):
        raise TooFewCpus(f"this node has {len(free)} CPUs left to dedicate to VMs, not {count}")
    parts = [sorted(set(free) & cell, reverse=True) for cell in cells]
    parts += [sorted(set(free) - {cpu for part in parts for cpu in part}, reverse=True)]
    enough = [part for part in parts if len(part) >= count]
    if enough:
        return tuple(min(enough, key=len)[:count])
    return tuple([cpu for part in sorted(parts, key=len, reverse=True) for cpu in part][:count])


def choose_parts(free: Collection[int], count: int, parts: int, cells: Cells) -> tuple[int, ...]:
    """Return so many free CPUs in equal parts, one for each NUMA node of a guest, chosen one after the other.

    Raises TooFewCpus.
    """
    if count > len(free):
        raise TooFewCpus(f"this node has {len(free)} CPUs left to dedicate to VMs, not {count}")
    chosen: list[int] = []
    for _ in range(parts):
        chosen += choose(set(free) - set(chosen), count // parts, cells)
    return tuple(chosen)


def cells_of(cpus: Sequence[int], parts: int, cells: Cells) -> tuple[int | None, ...]:
    """Return the NUMA node of the host where each part of the CPUs is; None: it is in several, or there is only one."""
    if len(cells) < 2 or not cpus:
        return (None,) * parts
    size = len(cpus) // parts
    return tuple(
        next((number for number, cell in enumerate(cells) if cell.issuperset(cpus[at : at + size])), None)
        for at in range(0, size * parts, size)
    )


class DedicatedCpus:
    """The CPUs of this host. Its methods may block, and any thread may call them."""

    def __init__(self, vms_dir: Path, cpus: Iterable[int] | None = None, cells: Cells | None = None) -> None:
        """``vms_dir`` holds the directories of VMs, of which an earlier agent may have left some running."""
        self._all = frozenset(os.sched_getaffinity(0) if cpus is None else cpus)
        self._cells = host_cells() if cells is None else cells
        self._vms_dir = vms_dir
        self._lock = threading.Lock()
        self._taken: dict[str, tuple[int, ...]] = {}
        self._running: dict[str, tuple[int, tuple[int, ...]]] = {}
        """Of each VM that runs: its QEMU, and the thread of each vCPU."""
        for path in vms_dir.glob(f"*/{FILE}"):
            with contextlib.suppress(OSError, ValueError):
                self._taken[path.parent.name] = msgspec.json.decode(path.read_bytes(), type=tuple[int, ...])

    def of(self, vm: str) -> tuple[int, ...]:
        """Return the CPUs that a VM has for itself, one for each vCPU; none: it shares."""
        with self._lock:
            return self._taken.get(vm, ())

    def take(self, vm: str, count: int, parts: int = 1) -> tuple[int | None, ...]:
        """Give CPUs to a VM that is to start, and take them from all others. Return on which NUMA node of the host each
        of the guest's ``parts`` is, as ``cells_of`` does. Raises TooFewCpus, OSError."""
        with self._lock:
            if len(self._taken.get(vm, ())) != count:
                others = {cpu for other, cpus in self._taken.items() if other != vm for cpu in cpus}
                free = sorted(self._all - others)[RESERVED:]
                self._taken[vm] = choose_parts(free, count, parts, self._cells)
            private_file.write(self._vms_dir / vm / FILE, msgspec.json.encode(self._taken[vm]))
            self._place_all()
            return cells_of(self._taken[vm], parts, self._cells)

    def runs(self, vm: str, pid: int, threads: Sequence[int]) -> None:
        """A VM's QEMU runs, with these threads for its vCPUs, in order: put all of it where it belongs."""
        with self._lock:
            self._running[vm] = pid, tuple(threads)
            self._place(vm)

    def leave(self, vm: str) -> None:
        """A VM does not run any more: what it had for itself is everybody's again."""
        with self._lock:
            self._running.pop(vm, None)
            if self._taken.pop(vm, None) is None:
                return
            try:
                (self._vms_dir / vm / FILE).unlink(missing_ok=True)
            except OSError as error:
                log.warning("the next agent will keep CPUs for a VM that does not run", vm=vm, error=str(error))
            self._place_all()

    def _place_all(self) -> None:
        for vm in self._running:
            self._place(vm)

    def _place(self, vm: str) -> None:
        pid, threads = self._running[vm]
        shared = self._all - {cpu for cpus in self._taken.values() for cpu in cpus}
        own: dict[int, set[int]] = {}
        for thread, cpu in zip(threads, self._taken.get(vm, ()), strict=False):
            own.setdefault(thread, set()).add(cpu)  # an emulator may run all vCPUs in one thread
        try:
            place_threads(pid, own, shared)
        except OSError as error:
            log.warning("a VM's threads can't be put onto their CPUs", vm=vm, error=str(error))


def place_threads(pid: int, own: Mapping[int, Collection[int]], shared: Collection[int]) -> None:
    """Keep the threads of a process on CPUs: those in ``own`` on theirs, all others on ``shared``. Raises OSError."""
    for entry in Path(f"/proc/{pid}/task").iterdir():
        thread = int(entry.name)
        belongs = set(own.get(thread, shared))
        with contextlib.suppress(ProcessLookupError):  # it ends at this moment
            if os.sched_getaffinity(thread) != belongs:
                os.sched_setaffinity(thread, belongs)
