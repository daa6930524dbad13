"""The host that is set up: what it has, and the steps that change it."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from novacron import private_file
from novacron.local.setup.plan import (
    CreateServiceUser,
    DeleteFile,
    EnableUnit,
    HostFacts,
    PathFacts,
    RestartUnit,
    SetFile,
    SetFolder,
    SetupRequest,
    SetupStep,
    StopUnit,
    UnitFacts,
)
from novacron.local.setup.services import JOIN_TOKEN, ROOT, SERVER_USER

FILE_BYTES_MAX = 1 << 20
COMMAND_S_MAX, START_S_MAX = 60.0, 330.0
"""A unit has up to five minutes to say that it is ready (``TimeoutStartSec`` of the agent's)."""
LOG_LINES = 12
UNIT_PROPERTIES = "LoadState,UnitFileState,ActiveState,ExecMainStartTimestampMonotonic"


class SetupFailed(Exception):
    """A step could not be made: says which, why, and what to do."""


class Accounts(NamedTuple):
    """How users and groups are numbered."""

    user: Callable[[str], int] = lambda name: pwd.getpwnam(name).pw_uid
    group: Callable[[str], int] = lambda name: grp.getgrnam(name).gr_gid
    user_name: Callable[[int], str] = lambda number: pwd.getpwuid(number).pw_name
    group_name: Callable[[int], str] = lambda number: grp.getgrgid(number).gr_name


Run = Callable[[tuple[str, ...], float], "subprocess.CompletedProcess[str]"]


def run(command: tuple[str, ...], limit_s: float) -> subprocess.CompletedProcess[str]:
    """Run a command. Raises SetupFailed if it can't be run, or takes longer than its limit."""
    try:
        return subprocess.run(
            command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=limit_s
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupFailed(f"{' '.join(command)}: {error}") from None


class LocalHost:
    """A host. Its files are below ``root``, which is another directory than / in tests alone."""

    def __init__(self, root: Path = Path("/"), accounts: Accounts = Accounts(), run: Run = run) -> None:
        self._root, self._accounts, self._run = root, accounts, run

    def at(self, path: Path) -> Path:
        """Return where a path of the host is."""
        return self._root / path.relative_to("/")

    def facts(self, request: SetupRequest, node: str | None = None) -> HostFacts:
        """Return what is there of what is to be set up. Raises SetupFailed."""
        service = request.service
        folders = [folder.path for folder in (*service.folders, *request.folders)]
        files = [service.settings, JOIN_TOKEN, *(file.path for file in request.files)]
        paths = {path: self.path(path) for path in (*folders, *files)}
        return HostFacts(
            {path: facts for path, facts in paths.items() if facts is not None},
            self.unit(service.unit),
            not service.users or self.has_user(SERVER_USER),
            node,
        )

    def unit(self, name: str) -> UnitFacts:
        """Return how a unit is. Raises SetupFailed."""
        shown = self._run(("systemctl", "show", f"--property={UNIT_PROPERTIES}", name), COMMAND_S_MAX)
        return unit_facts(shown.stdout, time.time() - time.monotonic())

    def path(self, path: Path) -> PathFacts | None:
        """Return what a file or folder is; None: there is none. Raises SetupFailed."""
        at = self.at(path)
        try:
            status = at.lstat()
            is_file = stat.S_ISREG(status.st_mode)
            if is_file and status.st_size > FILE_BYTES_MAX:
                raise SetupFailed(
                    f"{path} is larger than {FILE_BYTES_MAX >> 20} MiB: it is not one of NovaCron's files"
                )
            content = at.read_bytes() if is_file else b""
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SetupFailed(f"can't read {path}: {error.strerror}") from None
        owner, group = self._named(status)
        is_folder = stat.S_ISDIR(status.st_mode)
        return PathFacts(is_folder, stat.S_IMODE(status.st_mode), owner, group, status.st_mtime, content)

    def _named(self, status: os.stat_result) -> tuple[str, str]:
        try:
            return self._accounts.user_name(status.st_uid), self._accounts.group_name(status.st_gid)
        except KeyError:
            return str(status.st_uid), str(status.st_gid)  # of a user who is gone

    def has_user(self, name: str) -> bool:
        """Say whether the host has a user."""
        try:
            self._accounts.user(name)
        except KeyError:
            return False
        return True

    def text(self, path: Path) -> str:
        """Return a file's content; empty if there is none."""
        file = self.path(path)
        return "" if file is None else file.content.decode(errors="replace")

    def make(self, step: SetupStep) -> None:
        """Make one step. Raises SetupFailed."""
        try:
            match step:
                case CreateServiceUser(file):
                    self._succeed("systemd-sysusers", file)
                case SetFolder((path, mode, owner, group)):
                    self.at(path).mkdir(parents=True, exist_ok=True)
                    os.chown(self.at(path), self._accounts.user(owner), self._accounts.group(group))
                    self.at(path).chmod(mode)
                case SetFile(path, content, mode, group):
                    numbers = self._accounts.user(ROOT), self._accounts.group(group)
                    private_file.write(self.at(path), content, mode, numbers)
                case DeleteFile(path):
                    self.at(path).unlink(missing_ok=True)
                case EnableUnit(unit):
                    self._succeed("systemctl", "enable", "--quiet", unit)
                case StopUnit(unit, _, for_good):
                    words = ("disable", "--now", "--quiet") if for_good else ("stop",)
                    self._succeed("systemctl", *words, unit, limit_s=START_S_MAX)
                case RestartUnit(unit):
                    self._restart(unit)
        except (OSError, KeyError) as error:
            raise SetupFailed(f"{step}: {error}") from None

    def _succeed(self, *command: str, limit_s: float = COMMAND_S_MAX) -> None:
        done = self._run(command, limit_s)
        if done.returncode != 0:
            raise SetupFailed(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")

    def _restart(self, unit: str) -> None:
        self._run(("systemctl", "reset-failed", unit), COMMAND_S_MAX)  # one that failed too often may start again
        done = self._run(("systemctl", "restart", unit), START_S_MAX)
        if done.returncode != 0:
            raise SetupFailed(f"{unit} does not start; its log ends with:\n{self.last_words(unit)}")

    def last_words(self, unit: str) -> str:
        """Return the end of a unit's log."""
        words = ("journalctl", "--no-pager", "-u", unit, "-n", str(LOG_LINES), "-o", "cat")
        return self._run(words, COMMAND_S_MAX).stdout.strip()


def unit_facts(shown: str, booted_at_s: float) -> UnitFacts:
    """Return what ``systemctl show`` says of a unit. ``booted_at_s``: the time at which the monotonic clock was 0."""
    properties = dict(line.partition("=")[::2] for line in shown.splitlines() if "=" in line)
    began_us = properties.get("ExecMainStartTimestampMonotonic", "0")
    return UnitFacts(
        properties.get("LoadState", "not-found"),
        properties.get("UnitFileState", "") in ("enabled", "enabled-runtime"),
        properties.get("ActiveState", "") == "active",
        booted_at_s + int(began_us) / 1e6 if began_us.isdecimal() and began_us != "0" else 0.0,
    )


def missing_programs(programs: Iterable[str] = ("systemctl", "journalctl")) -> list[str]:
    """Return the programs without which no host can be set up."""
    return [name for name in programs if shutil.which(name) is None]
