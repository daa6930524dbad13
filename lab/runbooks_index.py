"""The index of all runbooks, made of their pages: by group, by severity, and by alert."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from lab import runbook_history
from lab.alert_faults import catalogue
from novacron.runbooks import library
from novacron.runbooks.model import Runbook, RunbookSeverity

ROOT = Path(__file__).parents[1]
ALERT = re.compile(r"^ *- alert: (\w+)$", re.MULTILINE)

HEAD = """# Runbooks

Procedures that are pages and programs: [`novacron runbook run`](../reference/runbook-format.md) runs their steps. VMs
keep running without the control plane: no alert about the control plane is a reason to touch a node whose VMs run.
[How to use them](guide.md) in an incident has a worked example; [alerts](alerts.md) says what each alert means.

Made by `script/generate` of the pages: change those, and run it.
"""

TO_SILENCE = """{executed} of {all} alerts are executed to silence: a test injects the fault, a Prometheus with these
rules sees the alert fire, the runbook's steps run as written, its checks hold, and the alert is silent again. The test
is `test_each_fault_is_seen_ended_by_its_runbook_and_silent_again`, with the fault's name; figures are in the testing
history of each runbook.
"""


def alerts() -> list[str]:
    """Return the names of all alerts that there are."""
    return ALERT.findall((ROOT / "deploy/prometheus/rules/alerts.yml").read_text())


def page() -> str:
    """Return the index of the runbooks of the source tree."""
    return index(library.everything(ROOT / "docs/runbooks"), alerts())


def index(runbooks: Iterable[Runbook], alert_names: Iterable[str]) -> str:
    """Return the page of these runbooks, with all these alerts."""
    every = sorted(runbooks, key=lambda runbook: runbook.name)
    lines = [HEAD]
    for group in sorted({runbook.group for runbook in every}):
        lines += [f"## {group.replace('-', ' ').capitalize()}", "", "| runbook | for | severity | takes | tested |"]
        lines.append("|---|---|---|---|---|")
        lines += [
            f"| {_link(runbook)} | {runbook.front.purpose} | {runbook.front.severity} | {runbook.front.time} |"
            f" {runbook.front.tested} |"
            for runbook in every
            if runbook.group == group
        ]
        lines.append("")
    lines += ["## By severity", ""]
    for severity in RunbookSeverity:
        named = [_link(runbook) for runbook in every if runbook.front.severity is severity]
        lines += [f"* **{severity}**: {', '.join(named)}"] if named else []
    names, done = sorted(alert_names), executed_alerts()
    lines += ["", "## By alert", "", TO_SILENCE.format(executed=len(done & set(names)), all=len(names))]
    lines += ["| alert | runbook | executed to silence |", "|---|---|---|"]
    leads = {alert: runbook for runbook in every for alert in runbook.front.alerts}
    for alert in names:
        target = _link(leads[alert]) if alert in leads else "none yet"
        lines.append(f"| [{alert}](alerts.md#{alert.lower()}) | {target} | {_to_silence(alert, done)} |")
    return "\n".join(lines) + "\n"


def executed_alerts() -> set[str]:
    """Return the alerts that were executed to silence with the steps that their runbooks have now."""
    done = set[str]()
    for runbook in library.everything(ROOT / "docs/runbooks"):
        text = (ROOT / f"docs/runbooks/{runbook.name}.md").read_text()
        faults = {alert for alert, fault in catalogue.FAULTS.items() if fault.runbook == runbook.name}
        done |= runbook_history.alerts(text, runbook.digest) & faults
    return done


def _to_silence(alert: str, done: set[str]) -> str:
    fault = catalogue.FAULTS.get(alert)
    if fault is None:
        return f"no: {catalogue.WITHOUT_FAULT.get(alert, 'nobody has said why')}"
    return f"{'yes' if alert in done else 'not measured yet'}: {fault.what} (`{fault.name}`)"


def _link(runbook: Runbook) -> str:
    return f"[{runbook.title}]({runbook.name}.md)"
