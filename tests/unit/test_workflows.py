"""The workflows of GitHub: they follow its schema, a linter finds nothing in them, and they run what is here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from novacron.rollout.model import Strategy

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
OTHERS_ACTION = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")
SCRIPT = re.compile(r"(?<![\w./-])(?:script|\.ci)/[\w-]+")


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def jobs() -> list[tuple[str, dict[str, Any]]]:
    return [(f"{path.name} {name}", job) for path in WORKFLOWS for name, job in load(path)["jobs"].items()]


def test_the_workflows_follow_githubs_schema() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_zizmor_finds_nothing_in_the_workflows() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("zizmor"), "--offline", "--no-progress", ".github"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_workflows_have_no_rights_and_jobs_only_those_that_they_use() -> None:
    for path in WORKFLOWS:
        assert load(path)["permissions"] == {}, path.name
    writing = {name: job["permissions"] for name, job in jobs() if "write" in job["permissions"].values()}
    assert writing == {
        "packages.yml release": {"contents": "write"},
        "packages.yml publish-image": {"contents": "read", "packages": "write"},
    }
    for name in writing:
        assert dict(jobs())[name]["if"] == "github.ref_type == 'tag'"


def test_actions_of_others_are_pinned_by_their_commit() -> None:
    for name, job in jobs():
        assert job["timeout-minutes"], name
        for step in job["steps"]:
            if "uses" in step:
                assert OTHERS_ACTION.fullmatch(step["uses"]), f"{name}: {step['uses']}"


def test_workflows_call_scripts_that_are_there() -> None:
    named = {call for path in WORKFLOWS for call in SCRIPT.findall(path.read_text())}
    assert named >= {"script/lint", "script/test", "script/scan", "script/sbom", "script/package", ".ci/as-root"}
    assert [call for call in sorted(named) if not os.access(ROOT / call, os.X_OK)] == []
    tiers = dict(jobs())["ci.yml test"]["strategy"]["matrix"]["tier"]
    assert set(tiers) == {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}


@pytest.mark.parametrize("name", ["ci.yml", "security.yml"])
def test_the_last_job_waits_for_all_others(name: str) -> None:
    """``passed`` is the one check that a change needs: what it does not wait for is not required."""
    workflow = load(ROOT / ".github/workflows" / name)["jobs"]
    assert set(workflow["passed"]["needs"]) == workflow.keys() - {"passed"}
    script = workflow["passed"]["steps"][0]["run"]
    for results, code in (("success success", 0), ("success failure", 1), ("skipped success", 1), ("cancelled", 1)):
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", script],
            env={"RESULTS": results}, capture_output=True, timeout=30,
        )  # fmt: skip
        assert done.returncode == code, results


@pytest.fixture
def deploy(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return how the steps of the manual workflow are run, with an ssh that writes down what it was asked."""
    steps = load(ROOT / ".github/workflows/deploy.yml")["jobs"]["rollout"]["steps"]
    script = "\n".join(step["run"] for step in steps)
    ssh = tmp_path / "bin/ssh"
    ssh.parent.mkdir()
    ssh.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >asked\necho it went on\nexit "$SSH_CODE"\n')
    ssh.chmod(0o755)

    def run(code: int = 0, **inputs: str) -> subprocess.CompletedProcess[str]:
        values = {"STRATEGY": "canary", "VERSION": "0.2.0", "HOST": "deploy@control.example.net", "KEY": "key",
                  "KNOWN_HOST": "control.example.net ssh-ed25519 AAAA", **inputs}  # fmt: skip
        return subprocess.run(
            ["bash", "-eo", "pipefail", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=30,
            env={"PATH": f"{ssh.parent}:/usr/bin:/bin", "HOME": str(tmp_path), "SSH_CODE": str(code),
                 "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"), **values},
        )  # fmt: skip

    return run


def test_a_version_is_rolled_out_by_hand_with_the_strategy_that_was_chosen(
    deploy: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    assert deploy(STRATEGY="blue-green").returncode == 0
    asked = (tmp_path / "asked").read_text().split()
    assert asked[-8:] == [
        "deploy@control.example.net", "novacron", "rollout", "start", "--strategy", "blue-green", "--version", "0.2.0",
    ]  # fmt: skip
    assert "StrictHostKeyChecking=yes" in asked
    assert "it went on" in (tmp_path / "summary").read_text()
    assert not (tmp_path / ".ssh/rollout").exists(), "the key does not stay"
    begins: dict[Any, Any] = load(ROOT / ".github/workflows/deploy.yml")
    strategies = begins[True]["workflow_dispatch"]["inputs"]["strategy"]["options"]
    assert set(strategies) == {Strategy.BLUE_GREEN.value, Strategy.CANARY.value}


def test_a_rollout_that_went_back_fails_the_workflow(deploy: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert deploy(code=1).returncode == 1


@pytest.mark.parametrize(
    "inputs",
    [{"STRATEGY": "all"}, {"VERSION": "0.2.0; reboot"}, {"VERSION": "$(reboot)"}, {"HOST": "-oProxyCommand=x"},
     {"HOST": ""}],
)  # fmt: skip
def test_what_is_typed_is_checked_before_anything_is_asked(
    deploy: Callable[..., subprocess.CompletedProcess[str]], inputs: dict[str, str], tmp_path: Path
) -> None:
    assert deploy(**inputs).returncode != 0
    assert not (tmp_path / "asked").exists()
