"""Runbooks that bring releases and updates, and take nodes away, executed on a platform with VMs that run.

The lab has no packages and no systemd: where a page installs or restarts, the lab ends and starts the same processes.
Packages on whole Debian hosts are tested in ``tests/e2e/test_debian_hosts.py``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import runbook_history
from lab.drills.nodes import power_off
from lab.drills.platforms import small_platform
from lab.platform import Object, Platform, open_directory, until
from lab.rollouts import NEW, OLD, Load, installation
from lab.runbook_runs import PAGES, Actions, Answers, lab_machine, run_steps
from novacron.client import NotFoundError
from novacron.runbooks import library, runner
from novacron.runbooks.programs import CommandResult
from novacron.runbooks.runner import StepOutcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NODE, OTHER = "host-b", "host-a"
PACKAGES = {"client": "/tmp/novacron.deb", "agent": "/tmp/novacron-agent.deb", "server": "/tmp/novacron-server.deb"}
INSTALL_AGENT = "apt-get install --yes {client} {agent}".format_map(PACKAGES)
INSTALL_SERVER = "apt-get install --yes {client} {server}".format_map(PACKAGES)


@pytest.fixture(scope="module")
def at() -> Iterator[Platform]:
    with open_directory("nv8r-") as directory, small_platform(directory) as site:
        yield site


def execute(name: str, values: dict[str, str], actions: Actions, log: Path, answers: Answers | None = None) -> str:
    """Run a runbook as written, and record how long it took; return what an operator saw."""
    runbook = library.read(name, PAGES)
    given = {key: value for key, value in (PACKAGES | values).items() if key in runbook.front.values}
    began = time.monotonic()
    result, said = run_steps(
        runbook.steps, runner.values_for(runbook, {}, given), log, lab_machine(actions), answers
    )  # fmt: skip
    assert result.outcome is StepOutcome.DONE, f"{result.why}\n{said}"
    runbook_history.record(PAGES / f"{name}.md", runbook, None, time.monotonic() - began)
    return said


def restart(site: Platform, node: str) -> Callable[[], None]:
    """Return what a package does when it is installed: its agent ends, and the new one begins."""

    def act() -> None:
        site.agents[node].stop()
        site.agents[node].start()

    return act


def reboot(site: Platform, node: str) -> Callable[[], None]:
    """Return what a host does that is started anew: all on it ends, and its agent begins."""

    def act() -> None:
        power_off(site, node)
        site.agents[node].start()

    return act


@pytest.fixture
def vm(at: Platform) -> Iterator[Object]:
    made = at.client.create_vm(name="runs", image="tiny", memory_mib=128, node=NODE)
    at.wait_state(made["id"], "running", 90)
    yield made
    at.client.delete("vms", made["id"])
    until(lambda: not list(at.client.list("vms")), "the VM is deleted", 60)


def pid_of(site: Platform, vm: Object) -> int:
    return next(pid for key, pid in site.qemus().items() if vm["id"] in key)


def test_a_hotfix_goes_to_one_node_whose_vm_runs_on(at: Platform, vm: Object, tmp_path: Path) -> None:
    before, judged = pid_of(at, vm), list[bool]()
    answers = {"defect-is-gone": lambda: judged.append(bool(at.client.get("nodes", NODE)["spec"]["cordoned"]))}
    execute("deployment/hotfix", {"node": NODE}, {INSTALL_AGENT: restart(at, NODE)}, tmp_path / "log", answers)
    assert judged == [True], "it takes no VMs until somebody has looked"
    assert not at.client.get("nodes", NODE)["spec"]["cordoned"]
    assert pid_of(at, vm) == before and at.client.get("vms", vm["id"])["node"] == NODE


@pytest.mark.parametrize(
    ("name", "install"),
    [("maintenance/upgrade", INSTALL_AGENT), ("maintenance/security-patch", "apt-get upgrade --yes")],
)
def test_a_node_is_updated_and_restarted_while_its_vm_runs_elsewhere(
    at: Platform, vm: Object, tmp_path: Path, name: str, install: str
) -> None:
    where = dict[str, Any]()

    def look() -> None:
        where["at reboot"] = at.client.get("vms", vm["id"])["node"]
        reboot(at, NODE)()

    actions = {install: restart(at, NODE), "systemctl reboot": look}
    execute(name, {"node": NODE}, actions, tmp_path / "log")
    assert where["at reboot"] == OTHER, "its VM was elsewhere"
    moved = at.client.get("vms", vm["id"])
    assert moved["node"] == NODE and moved["status"]["state"] == "running", "and it is back"
    assert moved["status"].get("crashes", 0) == 0


def server_actions(site: Platform, install: str) -> Actions:
    def act() -> None:
        site.server.stop()
        site.server.start()

    return {install: act, "systemctl is-active novacron-server": lambda: "active" if site.server.running else "failed",
            "novacron support-bundle": lambda: ""}  # fmt: skip


def test_a_release_is_deployed_to_a_server_after_a_backup_and_rolled_back(
    at: Platform, vm: Object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, pid = str(tmp_path / "repository"), pid_of(at, vm)
    monkeypatch.setenv("NOVACRON_DATABASE_URL", at.postgres.url)
    monkeypatch.setenv("NOVACRON_STATE_DIR", str(tmp_path))
    at.cli("database", "backup", "--repository", repository, "--create")
    execute("deployment/standard", {"repository": repository}, server_actions(at, INSTALL_SERVER), tmp_path / "log")
    assert len(at.cli("database", "list", "--repository", repository, "-o", "name").stdout.split()) >= 2
    downgrade = INSTALL_SERVER.replace("--yes", "--yes --allow-downgrades")
    execute("deployment/rollback", {}, server_actions(at, downgrade), tmp_path / "log-of-rollback")
    assert pid_of(at, vm) == pid, "VMs run on"


def test_a_node_is_removed_after_its_vm_has_moved_away(at: Platform, vm: Object, tmp_path: Path) -> None:
    pid = pid_of(at, vm)
    assert pid
    execute("scaling/down", {"node": NODE}, {}, tmp_path / "log")
    with pytest.raises(NotFoundError):
        at.client.get("nodes", NODE)
    moved = at.client.get("vms", vm["id"])
    assert moved["node"] == OTHER and moved["status"]["state"] == "running"


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed: script/test does")
@pytest.mark.parametrize("strategy", ["canary", "blue-green"])
def test_a_release_is_rolled_out_behind_haproxy_and_no_request_fails(strategy: str, tmp_path: Path) -> None:
    with installation() as rollouts:
        rollouts.start_prometheus()
        rollouts.write_settings(
            prometheus=rollouts.prometheus_url,
            shares="10,50,100",
            step=8.0,
            check_every=1.0,
            watch=8.0,
            health_tries=1000,
        )

        def command(words: tuple[str, ...], limit_s: float, show: Callable[[str], None]) -> CommandResult:
            assert words[:2] == ("novacron", "rollout")
            code, said = rollouts.rollout(*words[2:])
            show(said)
            return CommandResult(code, said)

        name = "deployment/canary"
        runbook = library.read(name, PAGES)
        values = runner.values_for(runbook, {}, {"version": NEW, "strategy": strategy})
        assert rollouts.serving() == {OLD}
        began = time.monotonic()
        with Load(rollouts) as load:
            result, said = run_steps(runbook.steps, values, tmp_path / "log", command)
        assert result.outcome is StepOutcome.DONE, f"{result.why}\n{said}"
        assert rollouts.serving() == {NEW} and not load.failed()
        runbook_history.record(PAGES / f"{name}.md", runbook, None, time.monotonic() - began)
