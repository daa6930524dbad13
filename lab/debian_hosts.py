"""Real hosts of a lab: whole Debian systems with systemd, each in a network namespace of a ``Lab``.

A release's root is made once and kept (``root``). A host is a copy-on-write view of it that ``systemd-nspawn`` boots in
seconds. What a host writes is in its own directory, and its mounts are in a mount namespace of its own: they are gone
when it ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path

from lab.hosts import Host, LabFailed

BASE = ("systemd", "systemd-sysv", "dbus", "iproute2", "ca-certificates", "kmod")
"""What every host has beside what it was asked for."""
TOOLS = {"systemd-nspawn": "systemd-container", "mmdebstrap": "mmdebstrap"}
"""Programs that hosts are made with, and Debian's packages of them."""
BUILD_TIMEOUT_S, BOOT_TIMEOUT_S, STOP_TIMEOUT_S, COMMAND_TIMEOUT_S = 900.0, 120.0, 60.0, 300.0
POLL_S = 0.05
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BOOTED = ("running", "degraded")
LOG_TAIL_CHARACTERS = 3000
MOUNT = 'mount -t overlay overlay -o "$1" "$2" && shift 2 && exec "$@"'


class Release(StrEnum):
    """A release of Debian, by its code name."""

    DEBIAN_12 = "bookworm"
    DEBIAN_13 = "trixie"


def missing() -> list[str]:
    """Return the Debian packages that this machine lacks for such hosts."""
    return [package for program, package in TOOLS.items() if shutil.which(program) is None]


def root(release: Release, packages: Iterable[str], cache: Path) -> Path:
    """Return the root directory of a release with these packages, made if it is not kept. Raises LabFailed."""
    included = sorted({*BASE, *packages})
    digest = hashlib.sha256(" ".join(included).encode()).hexdigest()[:12]
    kept = cache / "debian" / f"{release}-{digest}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with (kept.parent / f"{release}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            _build(release, included, kept)
    return kept


def _build(release: Release, packages: list[str], kept: Path) -> None:
    fresh = kept.with_name(f".{kept.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    command = ["mmdebstrap", "--variant=minbase", f"--include={','.join(packages)}", str(release), str(fresh)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    if done.returncode != 0:
        shutil.rmtree(fresh, ignore_errors=True)
        raise LabFailed(f"can't make a root of Debian {release}:\n{done.stderr[-LOG_TAIL_CHARACTERS:]}")
    (fresh / "etc/machine-id").write_text("")  # each host makes its own
    fresh.rename(kept)


class DebianHost:
    """One host. ``directory`` must be on a file system that overlays can be made on: not itself an overlay."""

    def __init__(self, host: Host, root: Path, directory: Path) -> None:
        assert host.netns is not None, "a Debian host needs a network namespace"
        self.host = host
        self.name = host.name
        self._root, self._directory = root, directory
        self._changes = directory / "changes"
        self._log = directory / "console.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._leader: int | None = None
        for name in ("changes", "work", "root"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        self.write("/etc/hostname", f"{self.name}\n")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Boot it, and wait until systemd has started all units. Raises LabFailed."""
        layers = f"lowerdir={self._root},upperdir={self._changes},workdir={self._directory / 'work'}"
        merged = str(self._directory / "root")
        command = [
            *("setpriv", "--pdeathsig", "KILL", "--"),  # it ends with us, and its mounts with it
            *("unshare", "--mount", "--propagation", "slave", "--", "sh", "-c", MOUNT, "sh", layers, merged),
            *("systemd-nspawn", "--quiet", "--boot", f"--directory={merged}", f"--machine={self.host.netns}"),
            *("--register=no", "--keep-unit", "--link-journal=no", "--resolv-conf=off", "--timezone=off"),
            *(f"--hostname={self.name}", f"--network-namespace-path=/run/netns/{self.host.netns}"),
            *("--capability=all", "--system-call-filter=@known", "--bind=/dev/net/tun"),
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={"PATH": PATH, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"},
            )  # fmt: skip
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while not self._has_booted():
            if not self.running or time.monotonic() > deadline:
                self.kill()
                raise LabFailed(f"Debian host {self.name} does not boot:\n{self.console()}")
            time.sleep(POLL_S)

    def _has_booted(self) -> bool:
        self._leader = self._leader or self._find_leader()
        if self._leader is None:
            return False
        asked = self.run("systemctl", "is-system-running", check=False)
        return asked.stdout.strip() in BOOTED

    def _find_leader(self) -> int | None:
        """Return the process that is the host's init, as this machine numbers it."""
        assert self._process is not None
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            for pid in children:
                status = Path(f"/proc/{pid}/status").read_text()
                numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
                if len(numbers) > 2 and numbers[-1] == "1":
                    return int(pid)
        return None

    def run(
        self, *command: str, check: bool = True, stdin: str | None = None, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host as root. Raises LabFailed with what it said when it fails and ``check`` is set."""
        if self._leader is None:
            raise LabFailed(f"Debian host {self.name} is not running")
        done = subprocess.run(
            ["nsenter", "--target", str(self._leader), "--all", "--", *command],
            check=False, capture_output=True, text=True, input=stdin if stdin is not None else "", timeout=timeout_s,
            env={"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
        )  # fmt: skip
        if check and done.returncode != 0:
            said = f"{done.stdout}{done.stderr}"[-LOG_TAIL_CHARACTERS:]
            raise LabFailed(f"on {self.name}, {' '.join(command)} ended with {done.returncode}:\n{said}")
        return done

    def path(self, path: str) -> Path:
        """Return where a file of the host is: among what it has changed while it is off, else as it sees it."""
        return (self._changes if self._leader is None else Path(f"/proc/{self._leader}/root")) / path.lstrip("/")

    def write(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        target.chmod(mode)

    def copy(self, source: Path, path: str) -> None:
        """Put a file or directory of this machine on the host."""
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        else:
            shutil.copy(source, target)

    def console(self) -> str:
        """Return the end of what the host printed."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return text[-LOG_TAIL_CHARACTERS:]

    def journal(self, unit: str, lines: int = 40) -> str:
        """Return the end of a unit's log."""
        return self.run("journalctl", "--no-pager", "-u", unit, "-n", str(lines), "-o", "cat", check=False).stdout

    def stop(self) -> None:
        """Shut it down as its power button does. Raises LabFailed, and kills it, when it does not end."""
        if not self.running:
            return
        assert self._process is not None
        self.run("systemctl", "poweroff", check=False)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise LabFailed(f"Debian host {self.name} does not shut down:\n{self.console()}") from None
        finally:
            self.kill()

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._leader = None


@contextlib.contextmanager
def debian_hosts(hosts: Iterable[Host], root: Path, directory: Path) -> Iterator[list[DebianHost]]:
    """Boot a Debian in each of these hosts of a lab for as long as the block runs."""
    made = [DebianHost(host, root, directory / host.name) for host in hosts]
    try:
        for host in made:
            host.start()
        yield made
    finally:
        for host in made:
            host.kill()
        for host in made:
            shutil.rmtree(directory / host.name, ignore_errors=True)
