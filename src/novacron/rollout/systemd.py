"""Servers as units of systemd: ``novacron-server@blue.service`` and ``novacron-server@green.service``."""

from __future__ import annotations

import contextlib

from novacron.rollout.instances import Environments, run
from novacron.rollout.model import Colour, StepFailed

COMMAND_S_MAX, BEYOND_S = 30.0, 10.0
LOG_LINES = "12"
RUNS = frozenset({"active", "activating", "reloading"})


def unit(colour: Colour) -> str:
    return f"novacron-server@{colour}.service"


class ServerUnits:
    """Servers of this host's service manager. ``Instances`` says what the methods do."""

    def __init__(self, environments: Environments) -> None:
        self._environments = environments

    def install(self, colour: Colour, version: str) -> None:
        self._environments.give(colour, version)

    def version(self, colour: Colour) -> str:
        return self._environments.version(colour)

    def start(self, colour: Colour) -> None:
        if self.running(colour):
            return
        with contextlib.suppress(StepFailed):  # systemd does not know a unit that has never failed
            run(("systemctl", "reset-failed", "--", unit(colour)), COMMAND_S_MAX)
        # It is asked whether it is ready, with limits of the rollout's own.
        run(("systemctl", "enable", "--quiet", "--", unit(colour)), COMMAND_S_MAX)
        run(("systemctl", "start", "--no-block", "--", unit(colour)), COMMAND_S_MAX)

    def stop(self, colour: Colour, limit_s: float) -> None:
        run(("systemctl", "disable", "--quiet", "--", unit(colour)), COMMAND_S_MAX)
        try:
            run(("systemctl", "stop", "--", unit(colour)), limit_s)
        except StepFailed:
            run(("systemctl", "kill", "--signal=KILL", "--", unit(colour)), COMMAND_S_MAX)
            run(("systemctl", "stop", "--", unit(colour)), BEYOND_S)

    def running(self, colour: Colour) -> bool:
        shown = run(("systemctl", "show", "--property=ActiveState", "--value", "--", unit(colour)), COMMAND_S_MAX)
        return shown.strip() in RUNS

    def last_words(self, colour: Colour) -> str:
        words = ("journalctl", "--no-pager", "-u", unit(colour), "-n", LOG_LINES, "-o", "cat")
        try:
            return run(words, COMMAND_S_MAX).strip()
        except StepFailed as error:
            return str(error)
