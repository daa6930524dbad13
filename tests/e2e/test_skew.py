"""Versions beside one another: each earlier one that is served, as server, agent, CLI and SDK, with the present one.

The table is in docs/reference/versions.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.api_load import Stand
from lab.hosts import LabFailed, lab
from lab.platform import Platform, PlatformOptions, Service, default_cache, open_directory, platform, until
from lab.releases import Release, earlier
from novacron.client import ApiError, Client, Unreachable
from novacron.local.postgres import Postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SDK = """
import sys
from novacron.client import Client, load_config
client = Client(load_config())
name = sys.argv[1]
made = client.create_project(name)
assert client.get("projects", name)["id"] == made["id"]
assert {node["name"] for node in client.list("nodes")} == {"host-a", "host-b"}
vm = client.get("vms", "web")
assert vm["status"]["state"] == "running", vm["status"]
client.delete("projects", name)
print("done")
"""
COMMANDS = (("vm", "list"), ("node", "list"), ("vm", "show", "web"), ("project", "list"), ("events", "--limit", "5"))
READY = "tiny guest: ready"
WRITES_MAX = 10_000


def releases() -> list[Any]:
    """Return the earlier versions; without the project's history a skip says so, and no other test suffers."""
    try:
        return [pytest.param(release, id=release.name) for release in earlier()]
    except (LabFailed, OSError) as error:
        return [pytest.param(None, id="none", marks=pytest.mark.skip(str(error)))]


@pytest.fixture(params=releases())
def old(request: pytest.FixtureRequest) -> Path:
    """The source of an earlier version."""
    release: Release = request.param
    return release.source(default_cache())


@pytest.fixture
def old_platform(old: Path, images: Path, lacks: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    """A platform all of whose parts are of the earlier version."""
    if lacks:
        pytest.skip("; ".join(lacks))
    monkeypatch.setattr(Platform, "new_postgres", Postgres)  # a copied one has the present schema
    with (
        open_directory("nvsk-") as directory,
        lab(f"nvk{os.getpid()}", default_cache()) as hosts,
        platform(directory / "p", hosts, images, PlatformOptions(environment={"PYTHONPATH": str(old)})) as running,
    ):
        yield running


def become(service: Service, source: Path | None) -> None:
    """Restart a part as the version whose source this is; None: as the present one."""
    service.stop()
    service.env.pop("PYTHONPATH", None)
    if source is not None:
        service.env["PYTHONPATH"] = str(source)
    service.start()


def upgrade_server(p: Platform, source: Path | None = None) -> None:
    become(p.server, source)
    p.wait_ready()
    for name in p.agents:
        p.wait_node(name)


def upgrade_agent(p: Platform, name: str, source: Path | None = None) -> None:
    before = p.qemus()
    become(p.agents[name], source)
    p.wait_node(name)
    assert p.qemus() == before, "an upgrade touches no VM"


def move(p: Platform, target: str) -> None:
    """Move the VM live, and see that it is one."""
    begun = p.client.act("vms", "web", "migrate", {"target": target})
    done = p.client.wait("migrations", begun["id"], lambda now: now is None or now["finished_at"] is not None, 240)
    assert done is not None and done["phase"] == "completed", done
    until(lambda: p.client.get("vms", "web")["node"] == target, f"it is on {target}", 60)
    until(lambda: p.client.get("vms", "web")["status"]["state"] == "running", "it runs", 60)
    until(lambda: len(p.qemus()) == 1, "it runs once", 60)


def use(p: Platform, source: Path | None, name: str) -> None:
    """Work with the API as the CLI and the SDK of a version do."""
    environment = {**os.environ, "NOVACRON_CONFIG": str(p.config)}
    environment.pop("PYTHONPATH", None)
    if source is not None:
        environment["PYTHONPATH"] = str(source)
    done = subprocess.run(
        [sys.executable, "-c", SDK, name], check=False, capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.stdout == "done\n", done.stderr
    for command in COMMANDS:
        line = [sys.executable, "-m", "novacron", *command, "-o", "json"]
        done = subprocess.run(line, check=False, capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        json.loads(done.stdout)


def boot(p: Platform) -> None:
    vm = p.client.create_vm(name="web", image="tiny", memory_mib=128, node="host-a")
    until(lambda: READY in p.console_log(vm, "host-a"), "the guest has booted", 180)


def test_an_installation_is_upgraded_part_by_part_while_a_vm_runs_and_moves(old_platform: Platform, old: Path) -> None:
    p = old_platform
    boot(p)
    upgrade_server(p)
    use(p, old, "old-client-of-a-new-server")
    move(p, "host-b")  # old agents, new server
    upgrade_agent(p, "host-a")
    move(p, "host-a")  # from an old agent to a new one
    move(p, "host-b")  # and from the new one to the old one
    vm = p.client.create_vm(name="second", image="tiny", memory_mib=128, node="host-b")
    until(lambda: READY in p.console_log(vm, "host-b"), "an old agent starts a VM of a new server", 180)
    p.client.act("vms", "second", "stop")
    p.client.delete("vms", "second")
    until(lambda: len(p.qemus()) == 1, "it is gone", 120)
    upgrade_agent(p, "host-b")
    move(p, "host-a")
    use(p, None, "new-client")


def test_an_old_server_serves_newer_agents_clients_and_moves_between_them(old_platform: Platform, old: Path) -> None:
    p = old_platform
    boot(p)
    upgrade_agent(p, "host-a")
    use(p, None, "new-client-of-an-old-server")
    move(p, "host-b")  # from a new agent to an old one
    move(p, "host-a")
    upgrade_agent(p, "host-b")
    move(p, "host-b")
    upgrade_agent(p, "host-b", old)  # the way back of an agent, with its VM
    move(p, "host-a")
    use(p, old, "old-client")


class Writer:
    """Makes projects through one server, and remembers those that it was told are there."""

    def __init__(self, client: Client, prefix: str) -> None:
        self.acknowledged: list[str] = []
        self._client, self._prefix = Client(client.config), prefix
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for number in range(WRITES_MAX):
            if self._over.wait(0.02):
                return
            name = f"{self._prefix}-{number}"
            with contextlib.suppress(ApiError, Unreachable, OSError):
                self._client.create_project(name)
                self.acknowledged.append(name)

    def stop(self) -> None:
        self._over.set()
        self._thread.join(60)


def test_two_servers_of_different_versions_share_one_database_and_no_write_is_lost(old: Path) -> None:
    with open_directory("nvsk-") as directory:
        stand = Stand(directory, 0)
        stand.environment["PYTHONPATH"] = str(old)
        with stand.run():
            before = Writer(stand.client, "old")
            with stand.replica(environment={"PYTHONPATH": ""}) as client:
                after = Writer(client, "new")
                until(lambda: len(after.acknowledged) > 20, "the new server takes writes", 120)
                beside = len(before.acknowledged)
                until(lambda: len(before.acknowledged) > beside + 20, "so does the old one, over the new schema", 120)
                after.stop()
            count = len(before.acknowledged)
            until(lambda: len(before.acknowledged) > count + 20, "the old one goes on without the new one", 120)
            before.stop()
            wanted = {*before.acknowledged, *after.acknowledged}
            until(
                lambda: wanted <= {item["name"] for item in stand.client.list("projects")}, "every write is there", 60
            )
