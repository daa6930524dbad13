"""Alerts as Alertmanager and Prometheus tell of them: what leads to a runbook, and what ends a run."""

from __future__ import annotations

import http.client
import json
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from novacron.runbooks.model import RunbookError

ALERTS_BYTES_MAX = 4 << 20
TIME_LIMIT_S = 10.0
RESOLVED = ("resolved", "inactive", "suppressed")


class FiringAlert(NamedTuple):
    """An alert that fires, with its labels."""

    name: str
    labels: dict[str, str]


def load(source: str) -> list[FiringAlert]:
    """Return the alerts of a file, or of an address (http, https). Raises RunbookError."""
    try:
        if source.startswith(("http://", "https://")):
            with urllib.request.urlopen(source, timeout=TIME_LIMIT_S) as answer:  # noqa: S310 # nosec B310 - the scheme is checked
                data = answer.read(ALERTS_BYTES_MAX + 1)
        else:
            with Path(source).open("rb") as file:
                data = file.read(ALERTS_BYTES_MAX + 1)
        if len(data) > ALERTS_BYTES_MAX:
            raise RunbookError(f"{source}: alerts may have {ALERTS_BYTES_MAX >> 20} MiB")
        return decode(json.loads(data))
    except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
        raise RunbookError(f"can't read alerts from {source}: {error}") from None


def decode(document: object) -> list[FiringAlert]:
    """Return the firing alerts of what Alertmanager sends to receivers or answers, or Prometheus answers, or of one
    alert alone. Raises ValueError.
    """
    alerts = []
    for alert in _alerts(document):
        labels = alert.get("labels")
        if not isinstance(labels, dict):
            raise ValueError("an alert has no labels")
        state = alert.get("status", alert.get("state", "firing"))
        state = state.get("state") if isinstance(state, dict) else state
        if state not in RESOLVED and state != "pending":
            texts = {str(name): str(value) for name, value in labels.items()}
            alerts.append(FiringAlert(texts.get("alertname", ""), texts))
    return alerts


def _alerts(document: object) -> Iterable[dict[str, object]]:
    if isinstance(document, dict):
        data = document.get("data")
        document = document.get("alerts", data.get("alerts") if isinstance(data, dict) else [document])
    if not isinstance(document, list) or not all(isinstance(alert, dict) for alert in document):
        raise ValueError("these are no alerts of Alertmanager or Prometheus")
    return document


def stop_condition(names: Iterable[str], source: str) -> Callable[[], str]:
    """Return what says which of these alerts has begun to fire since now; empty: none. Raises RunbookError.

    If it can't be found out, that is a reason to stop, too.
    """
    watched, fired_before = frozenset(names), {alert.name for alert in load(source)}

    def look() -> str:
        try:
            firing = {alert.name for alert in load(source)}
        except RunbookError as error:
            return str(error)
        begun = sorted((firing - fired_before) & watched)
        return f"the alert {begun[0]} fires" if begun else ""

    return look
