"""Confinement of a QEMU: a user of its own, no network, no privileges, and a limited share of the host.

A guest that breaks out of its QEMU is this user. It can reach what was handed to it as open files, what lies in its
VM's directory and belongs to it, and what every user of the host may read.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from pathlib import Path

import msgspec

from novacron.model.node import AcceleratorKind

KVM = Path("/dev/kvm")
NAMESPACES = ("--net", "--ipc", "--mount", "--propagation", "slave")
"""Of these it has its own: empty ones of the network and IPC, because its tap is handed to it and its sockets are
files; and mounts, of which some are hidden."""
HIDE = (
    "mount -t proc -o nosuid,nodev,noexec,hidepid=invisible proc /proc;"
    " [ ! -d /run/novacron ] || mount -t tmpfs -o nosuid,nodev,noexec,size=4k,mode=0 none /run/novacron;"
    ' exec "$@"'
)
"""It sees no processes of other users, and not what agents keep of networks. Done as root, before it becomes another
user. A container may not allow it: then file modes alone protect these."""
PEER = struct.Struct("3i")
CHARGED_BESIDE_MIB = {AcceleratorKind.KVM: 512, AcceleratorKind.TCG: 2048}
"""What QEMU may use beside the guest's memory; an emulator keeps what it translated, up to 1 GiB."""
CPUS_BESIDE = 1
"""What QEMU's own threads may use beside the virtual CPUs' ones: disks, network, migration."""
PROCESSES_MAX = 1024
CPU_PERIOD_US = 100_000
CGROUPS = Path("/sys/fs/cgroup")
PARENT = "novacron"


MARK = "trusted.novacron"
"""The extended attribute that says whose a cgroup is."""
CONTROLLERS = ("memory", "cpu", "pids", "blkio")
"""Those of version 1 in which a VM has a cgroup."""


class Account(msgspec.Struct, frozen=True):
    """The user, and group of the same number, as which one VM's QEMU runs."""

    uid: int
    groups: tuple[int, ...] = ()


def account(uid: int, kind: AcceleratorKind) -> Account:
    """Return the account with this number, with what it needs to use the accelerator."""
    if kind is AcceleratorKind.KVM and KVM.stat().st_mode & stat.S_IWGRP:
        return Account(uid, (KVM.stat().st_gid,))
    return Account(uid)


def confined(
    arguments: list[str], account: Account, *, dies_with_parent: bool = False, memlock_bytes: int | None = None
) -> list[str]:
    """Return the command that runs another as the account, without privileges or network, in the same process.

    Who becomes another user no longer dies with its parent unless that is asked for again. ``memlock_bytes``: so much
    memory it may lock, as devices of the host need it.
    """
    groups = ("--groups", ",".join(map(str, account.groups))) if account.groups else ("--clear-groups",)
    user = ("--reuid", str(account.uid), "--regid", str(account.uid), *groups)
    bare = ("--no-new-privs", "--inh-caps=-all", "--bounding-set=-all")
    dies = ("--pdeathsig", "KILL") if dies_with_parent else ()
    locks = [] if memlock_bytes is None else ["prlimit", f"--memlock={memlock_bytes}", "--"]
    hidden = ("sh", "-c", HIDE, "confined")
    return [*locks, "unshare", *NAMESPACES, "--", *hidden, "setpriv", *user, *bare, *dies, "--", *arguments]


def inherited_path(descriptor: int) -> Path:
    """Return a path under which QEMU finds a file that it inherits."""
    return Path(f"/proc/self/fd/{descriptor}")


def check_peer(connection: socket.socket, pid: int) -> None:
    """Raise OSError unless a Unix socket, connected to, was made by this process.

    What lies in a directory of QEMU's may be a link to another VM's socket.
    """
    peer_pid, _, _ = PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
    if peer_pid != pid:
        raise OSError(f"a socket is process {peer_pid}'s, not QEMU's ({pid})")


class Cgroup:
    """The share of the host that one VM may use (cgroups(7), version 2 or 1). ``mark``: whose it is."""

    def __init__(self, name: str, mark: str = "") -> None:
        self._name, self._mark = name, mark
        self._unified = (CGROUPS / "cgroup.controllers").exists()

    def place(self, pid: int, vcpus: int, memory_mib: int, kind: AcceleratorKind) -> None:
        """Put a process into it, and limit it. Raises OSError where this host gives no such limits."""
        memory = (memory_mib + CHARGED_BESIDE_MIB[kind]) << 20
        quota = (vcpus + CPUS_BESIDE) * CPU_PERIOD_US
        if self._unified:
            limits = {"": {"memory.max": memory, "cpu.max": f"{quota} {CPU_PERIOD_US}", "pids.max": PROCESSES_MAX}}
            parent = CGROUPS / PARENT
            parent.mkdir(exist_ok=True)
            for above in (CGROUPS, parent):
                (above / "cgroup.subtree_control").write_text("+cpu +memory +pids")
        else:
            limits = {
                "memory": {"memory.limit_in_bytes": memory},
                "cpu": {"cpu.cfs_period_us": CPU_PERIOD_US, "cpu.cfs_quota_us": quota},
                "pids": {"pids.max": PROCESSES_MAX},
                **({"blkio": {}} if (CGROUPS / "blkio").exists() else {}),
            }
        for controller, values in limits.items():
            directory = self._directory(controller)
            directory.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # a kernel without such attributes: nobody removes it later
                os.setxattr(directory, MARK, self._mark.encode())
            for file, value in values.items():
                (directory / file).write_text(str(value))
            (directory / "cgroup.procs").write_text(str(pid))

    def bound_io(self, path: Path, bytes_per_s: int | None, iops: int | None) -> None:
        """Bound what its processes read and write in a second on the device that ``path`` is on; None: no bound.

        Raises OSError where this host gives no such limits. Version 1 sees only what is not buffered.
        """
        device = _disk_of(path)
        if device is None:  # tmpfs and the like have none
            return
        directory = self._directory("" if self._unified else "blkio")
        directory.mkdir(parents=True, exist_ok=True)
        if self._unified:
            for above in (CGROUPS, CGROUPS / PARENT):
                (above / "cgroup.subtree_control").write_text("+io")
            bytes_, count = bytes_per_s or "max", iops or "max"
            line = f"{device} rbps={bytes_} wbps={bytes_} riops={count} wiops={count}"
            (directory / "io.max").write_text(line)
            return
        for way in ("read", "write"):
            (directory / f"blkio.throttle.{way}_bps_device").write_text(f"{device} {bytes_per_s or 0}")
            (directory / f"blkio.throttle.{way}_iops_device").write_text(f"{device} {iops or 0}")

    def charged_bytes(self) -> int:
        """Return the memory that it is charged for. Raises OSError where this host does not count it."""
        file = "memory.current" if self._unified else "memory.usage_in_bytes"
        return int((self._directory("memory") / file).read_text())

    def throttled_s(self) -> float:
        """Return for how long its processes were held back. Raises OSError where this host does not count it."""
        stat = dict(line.split() for line in (self._directory("cpu") / "cpu.stat").read_text().splitlines())
        return int(stat["throttled_usec"]) / 1e6 if self._unified else int(stat["throttled_time"]) / 1e9

    def remove(self) -> None:
        """Remove it once it is empty. It is no error if it does not exist."""
        for controller in ("",) if self._unified else CONTROLLERS:
            with contextlib.suppress(FileNotFoundError):
                self._directory(controller).rmdir()

    def _directory(self, controller: str) -> Path:
        return CGROUPS / ("" if self._unified else controller) / PARENT / self._name


def cgroups() -> list[tuple[str, str]]:
    """Return the names and marks of the cgroups of VMs on this host that have a mark."""
    marked = {}
    for controller in ("", *CONTROLLERS):
        with contextlib.suppress(OSError):
            for directory in (CGROUPS / controller / PARENT).iterdir():
                with contextlib.suppress(OSError):  # a file, or it has no mark
                    marked[directory.name] = os.getxattr(directory, MARK).decode(errors="replace")
    return sorted(marked.items())


def _disk_of(path: Path) -> str | None:
    """Return the numbers of the disk that a path is on, or None if it is on none (sysfs: dev/block)."""
    number = path.stat().st_dev
    entry = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not entry.exists():
        return None
    device = entry.resolve()
    return ((device.parent if (device / "partition").exists() else device) / "dev").read_text().strip()


def can_confine() -> bool:
    """Say whether this process may become other users: it has to be root's."""
    return os.geteuid() == 0
