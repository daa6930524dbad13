"""Runbooks, executed against the fault that they are for, on a real platform."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from lab import runbook_history, runbook_runs
from lab.platform import Platform
from lab.runbook_runs import PAGES, lab_host
from novacron.runbooks import library, pages, programs, runner
from novacron.runbooks.model import Runbook, RunbookStep
from novacron.runbooks.runner import StepOutcome, StepResult
from tests.support import documented_steps


def run_page(
    site: Platform, runbook: Runbook, values: dict[str, str], log: Path, machine: programs.Execute
) -> tuple[StepResult, str]:
    """Run a page on a platform; return how it ended, and what an operator saw."""
    return run_steps(site, runbook.steps, runner.values_for(runbook, {}, values), log, machine)


def run_steps(
    site: Platform, steps: Iterable[RunbookStep], values: dict[str, str], log: Path, machine: programs.Execute
) -> tuple[StepResult, str]:
    assert site.client, "commands without settings mean this platform"
    return runbook_runs.run_steps(steps, values, log, machine)


@pytest.mark.slow
def test_a_killed_agent_is_brought_back_by_its_runbook(site: Platform, tmp_path: Path) -> None:
    path = PAGES / "incidents/node-down.md"
    runbook, agent = library.read("incidents/node-down", PAGES), site.agents["host-b"]
    began = time.monotonic()
    agent.kill()
    try:
        site.wait_node("host-b", ready=False)
        detected_s, began = time.monotonic() - began, time.monotonic()
        machine = lab_host({"systemctl restart novacron-agent": agent.start})
        result, said = run_page(site, runbook, {"node": "host-b"}, tmp_path / "log", machine)
        recovered_s = time.monotonic() - began
    finally:
        if not agent.running:
            agent.start()
        site.wait_node("host-b")
    assert result.outcome is StepOutcome.DONE, said
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "step"] == [step.name for step in runbook.steps]
    assert any("host-b" in line["words"] for line in lines if line["event"] == "command")
    runbook_history.record(path, runbook, detected_s, recovered_s)


@pytest.mark.slow
def test_a_killed_server_is_brought_back_by_its_runbook(site: Platform, tmp_path: Path) -> None:
    path = PAGES / "incidents/service-down.md"
    runbook = library.read("incidents/service-down", PAGES)
    actions: dict[str, Callable[[], object]] = {
        "systemctl restart novacron-server": site.server.start,
        "systemctl is-active novacron-server": lambda: "active" if site.server.running else "inactive",
    }
    site.server.kill()
    began = time.monotonic()
    try:
        result, said = run_page(site, runbook, {}, tmp_path / "log", lab_host(actions))
        recovered_s = time.monotonic() - began
    finally:
        if not site.server.running:
            site.server.start()
        site.wait_settled()
    assert result.outcome is StepOutcome.DONE, said
    runbook_history.record(path, runbook, None, recovered_s)


@pytest.mark.slow
def test_a_killed_database_is_brought_back_by_its_runbook(site: Platform, tmp_path: Path) -> None:
    path = PAGES / "incidents/database-issues.md"
    runbook, begun = library.read("incidents/database-issues", PAGES), []
    actions: dict[str, Callable[[], object]] = {
        "systemctl start postgresql": lambda: begun.append(site.postgres.start()),
        "pg_isready": lambda: "accepting connections" if begun else "no response",
    }
    site.postgres.kill()
    began = time.monotonic()
    try:
        result, said = run_page(site, runbook, {}, tmp_path / "log", lab_host(actions))
        recovered_s = time.monotonic() - began
    finally:
        if not begun:
            site.postgres.start()
        site.wait_ready()
    assert result.outcome is StepOutcome.DONE, said
    runbook_history.record(path, runbook, None, recovered_s)


@pytest.mark.slow
def test_the_database_is_backed_up_by_its_runbook(
    site: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runbook = library.read("maintenance/backup", PAGES)
    monkeypatch.setenv("NOVACRON_DATABASE_URL", site.postgres.url)
    monkeypatch.setenv("NOVACRON_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "state").mkdir()
    values = {"repository": str(tmp_path / "repository")}
    without, _ = run_page(site, runbook, values, tmp_path / "without", programs.execute_here)
    assert without.outcome is StepOutcome.FAILED and "step backup: " in without.why, "there is no repository"
    site.cli("database", "backup", "--repository", values["repository"], "--create")
    result, said = run_page(site, runbook, values, tmp_path / "log", programs.execute_here)
    assert result.outcome is StepOutcome.DONE, said


@pytest.mark.slow
def test_vms_are_backed_up_by_their_runbook(site: Platform, tmp_path: Path) -> None:
    repository = site.client.create_backup_repository("runbook")["id"]
    policy = site.client.create_backup_policy("runbook", repository, tags=["no-vm-has-this"])
    try:
        runbook = library.read("troubleshooting/vm-backups", PAGES)
        result, said = run_page(site, runbook, {"policy": "runbook"}, tmp_path / "log", programs.execute_here)
        assert result.outcome is StepOutcome.DONE, said
        assert site.client.get("backup-policies", policy["id"])["run_at"] is not None
    finally:
        site.client.delete("backup-policies", policy["id"])
        site.client.delete("backup-repositories", repository)


@pytest.mark.slow
def test_a_runbook_with_a_broken_step_or_a_fault_that_stays_does_not_end_well(site: Platform, tmp_path: Path) -> None:
    path = PAGES / "incidents/node-down.md"
    text = path.read_text().replace("wait=3m", "wait=3s")
    agent, ended = site.agents["host-b"], dict[str, StepResult]()
    mutants = {
        "a command that does nothing": (text.replace("restart novacron-agent", "status novacron-agent"), "connected"),
        "a command of another name": (text.replace("novacron node show", "novacron node look"), "what-is-known"),
        "an output that never comes": (text.replace("\ntrue\n", "\nwell\n"), "connected"),
    }  # fmt: skip
    agent.kill()
    try:
        site.wait_node("host-b", ready=False)
        for number, (what, (mutant, _)) in enumerate(mutants.items()):
            runbook = pages.parse("incidents/node-down", mutant)
            machine = lab_host({"systemctl restart novacron-agent": lambda: None})
            ended[what], _ = run_page(site, runbook, {"node": "host-b"}, tmp_path / str(number), machine)
    finally:
        agent.start()
        site.wait_node("host-b")
    for what, (_, step) in mutants.items():
        assert ended[what].outcome is StepOutcome.FAILED, f"{what}: {ended[what]}"
        assert ended[what].why.startswith(f"step {step}: "), f"{what}: {ended[what]}"


@pytest.mark.slow
def test_a_node_is_drained_mended_and_used_again_by_its_runbook(
    site: Platform, new_vm: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    runbook, vm = library.read("incidents/node-unhealthy", PAGES), new_vm(node="host-b")
    site.wait_state(vm["id"], "running")
    try:
        result, said = run_page(site, runbook, {"node": "host-b"}, tmp_path / "log", lab_host({}))
    finally:
        site.cli("node", "uncordon", "host-b")
    assert result.outcome is StepOutcome.DONE, said
    moved = site.client.get("vms", vm["id"])
    assert moved["node"] == "host-a" and moved["status"]["state"] == "running", said


@pytest.mark.slow
def test_the_commands_of_a_how_to_are_executed(site: Platform, tmp_path: Path) -> None:
    page = PAGES.parent / "how-to/node-conditions.md"
    steps = documented_steps.steps_in(page.name, page.read_text())
    result, said = run_steps(site, steps, {}, tmp_path / "log", lab_host({}))
    assert result.outcome is StepOutcome.DONE, said


@pytest.mark.slow
def test_the_link_between_two_nodes_is_probed_by_its_runbook(site: Platform, tmp_path: Path) -> None:
    runbook = library.read("troubleshooting/dwcp", PAGES)
    site.wait_node("host-b")
    values = {"node": "host-a", "target": "host-b"}
    result, said = run_page(site, runbook, values, tmp_path / "log", lab_host({}))
    assert result.outcome is StepOutcome.DONE, said
