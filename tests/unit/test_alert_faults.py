"""Which alerts are executed to silence: each alert is, or it is said why not; pages have what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lab import alert_runs, runbook_history, runbooks_index
from lab.alert_faults import catalogue
from lab.alert_faults.model import AlertFault
from novacron.runbooks import history, library
from novacron.runbooks.history import MeasuredRun

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/runbooks"
INDEX = (PAGES / "README.md").read_text()


def test_each_alert_is_executed_to_silence_or_it_is_said_why_not() -> None:
    assert sorted([*catalogue.FAULTS, *catalogue.WITHOUT_FAULT]) == sorted(runbooks_index.alerts())
    assert all(catalogue.WITHOUT_FAULT.values())
    assert len({fault.name for fault in catalogue.ALL}) == len(catalogue.ALL)


@pytest.mark.parametrize("fault", catalogue.ALL, ids=lambda fault: fault.name)
def test_a_fault_is_ended_by_the_runbook_that_its_alerts_lead_to(fault: AlertFault) -> None:
    leads = {alert for alert in fault.alerts if alert in library.read(fault.runbook, PAGES).front.alerts}
    assert leads == set(fault.alerts)


def test_an_alert_is_said_to_be_executed_only_where_its_page_has_what_was_measured() -> None:
    """Measure: NOVACRON_RECORD_RUNBOOKS=1 script/test tests/integration/test_alerts_to_silence.py -m slow"""
    rows = dict(
        re.findall(r"^\| \[(\w+)\]\(alerts\.md#\w+\) \| .* \| (yes|no|not measured yet): ", INDEX, re.MULTILINE)
    )
    assert set(rows) == set(runbooks_index.alerts())
    for alert, said in rows.items():
        fault = catalogue.FAULTS.get(alert)
        if fault is None:
            assert said == "no", alert
            continue
        page, runbook = (PAGES / f"{fault.runbook}.md").read_text(), library.read(fault.runbook, PAGES)
        measured = alert in runbook_history.alerts(page, runbook.digest)
        assert said == ("yes" if measured else "not measured yet"), f"{alert}: script/generate"
        assert not measured or "against the fault" in runbook.front.tested, fault.runbook
    assert "yes" in rows.values()


def test_shortened_rules_are_the_rules_with_other_durations() -> None:
    text = (ROOT / "deploy/prometheus/rules/alerts.yml").read_text()
    given, short = (yaml.safe_load(each)["groups"] for each in (text, alert_runs.shortened(text)))
    for was, now in zip(given[0]["rules"], short[0]["rules"], strict=True):
        assert alert_runs.RANGE.sub("[]", was["expr"]) == alert_runs.RANGE.sub("[]", now["expr"])
        assert {**was, "expr": "", "for": ""} == {**now, "expr": "", "for": ""}
        assert alert_runs.seconds(now.get("for", "0s")) <= min(
            alert_runs.seconds(was.get("for", "0s")), alert_runs.FOR_S_MAX
        )
    assert alert_runs.shortened("rate(a[5m]) > 0.5\n  for: 1d\n") == "rate(a[10000ms]) > 0.5\n  for: 10000ms\n"


def test_a_row_of_history_takes_the_place_of_that_of_the_same_alert_and_drops_those_of_other_steps() -> None:
    def row(digest: str, alert: str, took: str) -> str:
        return f"| 2026-11-30 | 1 | here | `{digest}` | 1 s | {took} | {alert} |"

    now, before = "a" * 16, "b" * 16
    page = runbook_history.with_row("# Page\n", before, row(before, "NodeDown", "9 s"))
    page = runbook_history.with_row(page, now, row(now, "NodeDown", "2 s"))
    page = runbook_history.with_row(page, now, row(now, "AgentSilent", "3 s"))
    page = runbook_history.with_row(page, now, row(now, "NodeDown", "4 s"))
    assert runbook_history.alerts(page, now) == {"AgentSilent", "NodeDown"}
    assert [line for line in page.splitlines() if "here" in line] == [
        row(now, "AgentSilent", "3 s"),
        row(now, "NodeDown", "4 s"),
    ]


def test_times_of_runbooks_are_what_their_pages_say() -> None:
    digest = "a" * 16
    row = f"| 2026-11-30 | 1 | here | `{digest}` | 75 s | 4 s | NodeDown |"
    page = runbook_history.with_row("# Page\n", digest, row)
    page = runbook_history.with_row(page, digest, row.replace("75 s", "-").replace("NodeDown", "-"))
    assert history.measured_runs(page) == [MeasuredRun("-", None, 4.0), MeasuredRun("NodeDown", 75.0, 4.0)]
    earlier = page.replace(" NodeDown |", "").replace(" 4 s | - |", " 4 s |")
    assert history.measured_runs(earlier) == [MeasuredRun("-", None, 4.0), MeasuredRun("-", 75.0, 4.0)]
    assert history.measured_runs("# Page\n") == []
    measured = history.everything_measured(PAGES)
    assert any(run.recover_s for run in measured["incidents/node-down"])
