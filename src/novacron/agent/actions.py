"""What an agent does to a VM, seen from outside: each action is counted, timed, logged, and part of a trace."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

from novacron.telemetry import logs, traces
from novacron.telemetry.values import counter, histogram

log = logs.get(__name__)

DONE = counter("novacron_agent_actions_total")
DURATIONS = histogram("novacron_agent_action_duration_seconds")


class Action(StrEnum):
    """All that there is."""

    START = "start"
    CONTINUE = "continue"
    PAUSE = "pause"
    REBOOT = "reboot"
    RESET = "reset"
    POWER_DOWN = "power-down"
    KILL = "kill"
    MAKE_ROOM = "make-room"
    MARK_HALTED = "mark-halted"
    WAKE = "wake"
    DESTROY = "destroy"
    ATTACH = "attach"
    DETACH = "detach"
    GROW = "grow"
    CHANGE_CD = "change-cd"
    SNAPSHOT = "snapshot"
    CLONE = "clone"
    SEND = "send"
    SERVE = "serve"
    RECEIVE = "receive"
    PULL = "pull"
    IMPORT = "import"
    EXPORT = "export"
    BACKUP = "backup"
    VERIFY_BACKUP = "verify-backup"
    DELETE_BACKUP = "delete-backup"
    RESTORE = "restore"
    REPLICATE = "replicate"
    COMPARE = "compare"
    MERGE_POINTS = "merge-points"
    VOLUME = "volume"
    COPY_OUT = "copy-out"
    COPY_IN = "copy-in"
    PROBE = "probe"


Doing = Callable[..., contextlib.AbstractContextManager[None]]
"""As ``doing``, for one VM."""


@contextlib.contextmanager
def doing(action: Action, *, trace: str | None = None, **about: Any) -> Iterator[None]:  # noqa: ANN401 - attributes
    """Do it in the block. ``trace``: to which it belongs; None: to the present one. ``about``: VM, migration and so on,
    which traces and all that is logged meanwhile tell, too."""
    about = {name: value for name, value in about.items() if value not in (None, "")}
    began, outcome, id = time.perf_counter(), "failed", ""
    DONE.cell(action, outcome)  # there while the first one goes on: an increase from nothing is not seen
    try:
        with logs.bound(**about), traces.span(f"agent {action}", parent=trace, always=True, **about):
            id = traces.recorded_id()
            yield
            outcome = "done"
    except asyncio.CancelledError:  # somebody does not want it any more: that is no failure
        outcome = "cancelled"
        raise
    finally:
        took_s = time.perf_counter() - began
        DONE.add(action, outcome)
        DURATIONS.observe(took_s, action, trace=id)
        log.info("action", action=action, outcome=outcome, took_s=round(took_s, 3), **about)
