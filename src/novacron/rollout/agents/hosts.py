"""What a rollout does on nodes' hosts: copies packages, installs them, restarts a host. It needs nothing of ours.

Commands are given to a program that reaches the host as root, by default ssh(1). That joins their words into a line for
a shell there, so only words that no shell changes are ever given to it.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from novacron.child_environment import clean
from novacron.rollout.agents.packages import NAMES, digest, package_version
from novacron.rollout.model import StepFailed

KEPT_IN = "/var/lib/novacron/packages"
UNIT = "novacron-agent-rollout"
LOOK_S_MAX, COPY_S_MAX, SYSTEM_S_MAX = 60.0, 600.0, 1800.0
"""For short questions; for a package; for the packages of the system."""
SAID_MAX, LOG_LINES = 600, "12"
POLL_S = 1.0
PLAIN = re.compile(r"^[0-9A-Za-z@%+=:,./_^~-]+\Z")
NODE = re.compile(r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?\Z")
RELEASE = re.compile(r"^([0-9]{1,3})(\.[0-9]+)?$", re.MULTILINE)
SYSTEM_PACKAGE = re.compile(r"^[a-z0-9][a-z0-9.+-]{1,99}\Z")


class Hosts(Protocol):
    """The nodes' hosts. All methods can be repeated, and are called by several threads. All raise StepFailed."""

    def debian(self, node: str) -> str:
        """Return the release of Debian, such as 12."""

    def installed(self, node: str) -> str:
        """Return the version of the package novacron-agent; empty: it is not, or half, installed."""

    def bring(self, node: str, files: Sequence[Path]) -> None:
        """Copy packages to the host, whole or not at all."""

    def install(self, node: str, files: Sequence[Path]) -> None:
        """Install packages that were brought; this restarts the agent and touches no VM."""

    def upgrade_system(self, node: str, packages: Sequence[str]) -> None:
        """Upgrade these packages of the system."""

    def boot_id(self, node: str) -> str:
        """Return what the kernel calls its present start."""

    def restart(self, node: str) -> None:
        """Restart the host."""


class ReachedHosts:
    """Hosts that a program reaches. ``reach``: its words, in which ``{node}`` stands for the node's name."""

    def __init__(self, reach: str, install_s_max: float) -> None:
        self._reach, self._install_s_max = shlex.split(reach), install_s_max

    def debian(self, node: str) -> str:
        said = self._run(node, ("cat", "/etc/debian_version"), LOOK_S_MAX)
        match = RELEASE.search(said)
        if match is None:
            raise StepFailed(f"{node}: /etc/debian_version says {said.strip()[:40]!r}, which is no release of Debian")
        return match[1]

    def installed(self, node: str) -> str:
        try:
            lines = self._run(node, ("dpkg", "--status", NAMES[-1]), LOOK_S_MAX).splitlines()
        except CommandFailed as error:
            if "is not installed" in str(error):
                return ""
            raise
        if "Status: install ok installed" not in lines and "Status: hold ok installed" not in lines:
            return ""
        return next((line.partition(": ")[2] for line in lines if line.startswith("Version: ")), "")

    def bring(self, node: str, files: Sequence[Path]) -> None:
        self._run(node, ("mkdir", "-p", KEPT_IN), LOOK_S_MAX)
        for file in files:
            whole, part = _there(file), f"{_there(file)}.part"
            expected_digest = digest(file)
            if self._digest(node, whole) == expected_digest:
                continue
            try:
                with file.open("rb") as opened:
                    self._run(node, ("dd", f"of={part}", "bs=1M", "status=none"), COPY_S_MAX, opened.fileno())
            except OSError as error:
                raise StepFailed(f"packages: can't read {file}: {error.strerror}") from None
            if self._digest(node, part) != expected_digest:
                raise StepFailed(f"{node}: {part} is not what was sent: is its disk full?")
            self._run(node, ("mv", "-f", part, whole), LOOK_S_MAX)

    def _digest(self, node: str, path: str) -> str:
        try:
            return self._run(node, ("sha256sum", "-b", path), COPY_S_MAX)[:64]
        except CommandFailed:
            return ""

    def install(self, node: str, files: Sequence[Path]) -> None:
        for file in files:
            package_version(file)
        self._run_unit(node, ("dpkg", "--configure", "-a"), self._install_s_max, check=False)  # what was cut off
        self._run_unit(node, ("dpkg", "--force-confold", "--install", *map(_there, files)), self._install_s_max)

    def upgrade_system(self, node: str, packages: Sequence[str]) -> None:
        self._run(node, ("apt-get", "update", "-q"), SYSTEM_S_MAX)
        words = ("apt-get", "install", "--only-upgrade", "--yes", "-q", *packages)
        self._run_unit(node, words, SYSTEM_S_MAX)

    def _run_unit(self, node: str, words: Sequence[str], limit_s: float, *, check: bool = True) -> None:
        """Run a command as a unit: it goes on when the connection breaks, and two of them never run at once. Raises
        StepFailed, with the end of what it printed."""
        self._until_free(node, limit_s)
        unit = ("systemd-run", "--wait", "--collect", "--quiet", f"--unit={UNIT}")
        try:
            self._run(node, (*unit, "--setenv=DEBIAN_FRONTEND=noninteractive", "--", *words), limit_s)
        except CommandFailed as error:
            if check:
                log = ("journalctl", "--no-pager", "-u", f"{UNIT}.service", "-n", LOG_LINES, "-o", "cat")
                said = self._run(node, log, LOOK_S_MAX, check=False).strip()[-SAID_MAX:]
                raise CommandFailed(f"{error}; {words[0]} said: {said}") from None

    def _until_free(self, node: str, limit_s: float) -> None:
        """Wait for what a rollout that was killed has begun on the host. Raises StepFailed."""
        deadline = time.monotonic() + limit_s
        words = ("systemctl", "is-active", f"{UNIT}.service")
        while self._run(node, words, LOOK_S_MAX, check=False).strip() in ("active", "activating"):
            if time.monotonic() > deadline:
                raise StepFailed(f"{node}: another installation has not ended within {limit_s:.0f} s: {UNIT}.service")
            time.sleep(POLL_S)
        self._run(node, ("systemctl", "reset-failed", f"{UNIT}.service"), LOOK_S_MAX, check=False)

    def boot_id(self, node: str) -> str:
        return self._run(node, ("cat", "/proc/sys/kernel/random/boot_id"), LOOK_S_MAX).strip()

    def restart(self, node: str) -> None:
        self._run(node, ("systemctl", "reboot"), LOOK_S_MAX, check=False)  # it may end the connection

    def _run(
        self, node: str, words: Sequence[str], limit_s: float, stdin: int = subprocess.DEVNULL, *, check: bool = True
    ) -> str:
        """Run a command on a host and return what it prints. Raises StepFailed."""
        unsafe = next((word for word in words if not PLAIN.match(word)), None)
        if unsafe is not None or not NODE.match(node):
            raise StepFailed(f"{node}: {unsafe or node!r} has characters that a shell could change")
        command = [part.replace("{node}", node) for part in self._reach]
        try:
            done = subprocess.run(
                [*command, *words],
                check=False,
                capture_output=True,
                stdin=stdin,
                timeout=limit_s,
                env=clean(prefix="SSH_"),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise StepFailed(f"{node}: {' '.join(words[:3])} has not ended within {limit_s:.0f} s") from None
        except OSError as error:
            raise StepFailed(f"reach: can't run {command[0]}: {error.strerror}") from None
        if done.returncode != 0 and check:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()[-SAID_MAX:]
            raise CommandFailed(f"{node}: {' '.join(words[:3])} ended with {done.returncode}: {said}")
        return done.stdout.decode(errors="replace")


class CommandFailed(StepFailed):
    """A command on a host ended with an error: says which, and what it printed."""


def _there(file: Path) -> str:
    """Return where a package is kept on the host."""
    return f"{KEPT_IN}/{file.name}"
