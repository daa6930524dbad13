"""What an alert's fault is, where it is injected, and what of its runbook the lab has to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from lab.observers import Exporter
from lab.platform import Platform
from lab.runbook_runs import Actions, Answers

NOTHING: Actions = MappingProxyType({})
NO_TEXTS: Mapping[str, str] = MappingProxyType({})


class Scene(NamedTuple):
    """Where a fault is injected."""

    site: Platform
    exporter: Exporter
    """What measures the database for Prometheus."""
    directory: Path
    after: ExitStack
    """Undoes what a fault leaves behind, when the scene ends."""


class Mending(NamedTuple):
    """What of a runbook the lab does."""

    actions: Actions = NOTHING
    """Instead of a command on a host, by how it would be typed."""
    answers: Answers = NOTHING
    """What people do when a step asks whether it is done."""
    values: Mapping[str, str] = NO_TEXTS
    """Values that the alert's labels do not give."""


class AlertFault(NamedTuple):
    """A fault, the alerts that it makes fire, and the runbook that ends it."""

    name: str
    what: str
    alerts: tuple[str, ...]
    runbook: str
    inject: Callable[[Scene], AbstractContextManager[Mending]]
    """Injects the fault; undoes what is left of it when the block ends."""
    labels: Mapping[str, str] = NO_TEXTS
    """Labels of the alerts that are meant, where others of the same name may fire."""
    fires_s_max: float = 60.0
    silent_s_max: float = 90.0
    needs_root: bool = False
    needs_hosts: bool = False
    """It needs hosts with a network of their own."""
