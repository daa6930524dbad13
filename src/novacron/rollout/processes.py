"""Servers as processes of their own, for hosts and containers without systemd, and for the lab.

A file has the process id and when the process began, so that another one with the same id is not taken for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from novacron.rollout.instances import Environments
from novacron.rollout.launch import BEGAN, stat_of
from novacron.rollout.model import Colour, StepFailed

POLL_S = 0.05
KILLED_S_MAX = 10.0
LOG_BYTES_SHOWN = 1500
LAUNCHED_S_MAX = 10.0
STATE = 0
"""Field of /proc/PID/stat after the name (proc(5))."""


class ServerProcesses:
    """Servers that outlive whoever starts them. ``Instances`` says what the methods do."""

    def __init__(self, environments: Environments, directory: Path, settings_of: Callable[[Colour], Path]) -> None:
        self._environments, self._directory, self._settings_of = environments, directory, settings_of
        self._started: dict[Colour, subprocess.Popen[bytes]] = {}

    def install(self, colour: Colour, version: str) -> None:
        self._environments.give(colour, version)

    def version(self, colour: Colour) -> str:
        return self._environments.version(colour)

    def start(self, colour: Colour) -> None:
        if self.running(colour):
            return
        command = [
            sys.executable, "-m", "novacron.rollout.launch", str(self._pid_file(colour)),
            str(self._environments.python(colour)), "-I", "-m", "novacron", "server",
            "--settings", str(self._settings_of(colour)),
        ]  # fmt: skip
        try:
            descriptor = os.open(self._log(colour), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "ab") as log:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
        except OSError as error:
            raise StepFailed(f"can't start {colour}: {error}") from None
        self._started[colour] = process
        deadline = time.monotonic() + LAUNCHED_S_MAX
        while self.pid(colour) != process.pid and process.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def stop(self, colour: Colour, limit_s: float) -> None:
        pid = self.pid(colour)
        for number, wait_s in ((signal.SIGTERM, limit_s), (signal.SIGKILL, KILLED_S_MAX)):
            if pid is None:
                break
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                break
            deadline = time.monotonic() + wait_s
            while (pid := self.pid(colour)) is not None and time.monotonic() < deadline:
                time.sleep(POLL_S)
        if self.pid(colour) is not None:
            raise StepFailed(f"{colour}: process {pid} does not end")
        self._pid_file(colour).unlink(missing_ok=True)

    def running(self, colour: Colour) -> bool:
        return self.pid(colour) is not None

    def pid(self, colour: Colour) -> int | None:
        """Return the id of a colour's process; None: it does not run."""
        try:
            pid, began = self._pid_file(colour).read_text().split()
            fields = stat_of(int(pid))
        except (OSError, ValueError, LookupError):
            return None  # never started, or ended
        if fields[BEGAN] != began:
            return None
        if fields[STATE] == "Z":
            with contextlib.suppress(ChildProcessError):  # somebody else's, who has not looked yet
                os.waitpid(int(pid), os.WNOHANG)
            return None
        return int(pid)

    def last_words(self, colour: Colour) -> str:
        try:
            return self._log(colour).read_bytes()[-LOG_BYTES_SHOWN:].decode(errors="replace").strip()
        except OSError as error:
            return str(error)

    def _pid_file(self, colour: Colour) -> Path:
        return self._directory / f"{colour}.pid"

    def _log(self, colour: Colour) -> Path:
        return self._directory / f"{colour}.log"
