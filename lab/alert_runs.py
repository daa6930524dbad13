"""From a fault to silence: Prometheus sees it, a runbook ends it as written, and Prometheus sees that it has ended.

Prometheus has the rules that operators get. Its durations are shorter, so that minutes become seconds; what an
expression compares with stays. Times of detection therefore have the rule's own ``for`` added: measured is how long it
takes until the expression holds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lab import runbook_history, runbook_runs
from lab.alert_faults.model import AlertFault, Mending, Scene
from lab.observers import DEPLOYED, DURATION, UNITS_S, Prometheus
from lab.platform import until
from novacron.runbooks import library, runner
from novacron.runbooks.runner import StepOutcome

TIMES = 30.0
"""How many times shorter durations are."""
SCRAPED_S = 3
"""How often Prometheus looks: an answer may take as long, on a machine that has other things to do."""
WINDOW_S_MIN, FOR_S_MAX = 8.0, 10.0
"""The shortest range, of which a rate needs several samples, and the longest ``for``, in the shortened rules."""
CALM_S_MAX = 60.0
RULES = DEPLOYED / "prometheus/rules"
RANGE = re.compile(r"\[([^\]]+)\]")
FOR = re.compile(r"^( *for: )(\w+)$", re.MULTILINE)


class RunToSilence(NamedTuple):
    """How long one alert's fault lasted."""

    alert: str
    detected_s: float
    """From the fault until the alert fires, at the rule's own pace."""
    recovered_s: float
    """From then until the runbook had ended with all as expected."""


def seconds(duration: str) -> float:
    """Return the length of a duration such as ``5m``."""
    return sum(int(count) * UNITS_S[unit] for count, unit in DURATION.findall(duration))


def shortened(rules: str) -> str:
    """Return rules with shorter ranges and waits."""
    text = RANGE.sub(lambda match: f"[{max(seconds(match[1]) / TIMES, WINDOW_S_MIN) * 1000:.0f}ms]", rules)
    return FOR.sub(lambda match: f"{match[1]}{min(seconds(match[2]) / TIMES, FOR_S_MAX) * 1000:.0f}ms", text)


def waits_s() -> dict[str, float]:
    """Return for how long each alert's expression has to hold, as operators have it."""
    groups = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: seconds(rule.get("for", "0s")) for group in groups for rule in group["rules"]}


def firing(prometheus: Prometheus, fault: AlertFault, alert: str) -> dict[str, Any] | None:
    """Return an alert of a fault, as Prometheus tells of it, if it fires."""
    labels = {"alertname": alert, **fault.labels}
    for each in prometheus.ask("alerts")["alerts"]:
        if each["state"] == "firing" and labels.items() <= each["labels"].items():
            return dict(each)
    return None


def to_silence(fault: AlertFault, scene: Scene, prometheus: Prometheus, log: Path) -> list[RunToSilence]:
    """Inject a fault, wait until its alerts fire, run its runbook, and wait until they are silent again.

    Raises AssertionError that says what did not happen.
    """
    _wait_silent(prometheus, fault, CALM_S_MAX, "before the fault")
    waits = waits_s()
    began_s = time.time()
    with fault.inject(scene) as mending:
        fired = {alert: _wait_firing(prometheus, fault, alert) for alert in fault.alerts}
        noticed_s = time.time()
        _run_runbook(fault, mending, fired[fault.alerts[0]]["labels"], log)
        recovered_s = time.time() - noticed_s
        _wait_silent(prometheus, fault, fault.silent_s_max, "after the runbook")
    return [
        RunToSilence(alert, max(_active_at_s(firing_alert) - began_s, 0.0) + waits[alert], recovered_s)
        for alert, firing_alert in fired.items()
    ]


def record(fault: AlertFault, runs: Iterable[RunToSilence]) -> None:
    """Write what was measured into the testing history of the fault's runbook, if that is wanted."""
    page, runbook = runbook_runs.PAGES / f"{fault.runbook}.md", library.read(fault.runbook, runbook_runs.PAGES)
    for run in runs:
        runbook_history.record(page, runbook, run.detected_s, run.recovered_s, run.alert)


def _active_at_s(alert: dict[str, Any]) -> float:
    return datetime.fromisoformat(re.sub(r"\.\d+", "", str(alert["activeAt"])).replace("Z", "+00:00")).timestamp()


def _wait_firing(prometheus: Prometheus, fault: AlertFault, alert: str) -> dict[str, Any]:
    fired: dict[str, Any] = until(
        lambda: firing(prometheus, fault, alert), f"the alert {alert} fires for {fault.name}", fault.fires_s_max
    )
    return fired


def _wait_silent(prometheus: Prometheus, fault: AlertFault, limit_s: float, when: str) -> None:
    for alert in fault.alerts:
        until(lambda a=alert: firing(prometheus, fault, a) is None, f"the alert {alert} is silent {when}", limit_s)  # type: ignore[misc]


def _run_runbook(fault: AlertFault, mending: Mending, labels: dict[str, str], log: Path) -> None:
    runbook = library.read(fault.runbook, runbook_runs.PAGES)
    values = runner.values_for(runbook, labels, mending.values)
    machine = runbook_runs.lab_machine(mending.actions)
    result, output = runbook_runs.run_steps(runbook.steps, values, log, machine, mending.answers)
    assert result.outcome is StepOutcome.DONE, f"{result.why}\n{output}"
