"""Drills of machines of the control plane: the server's is gone, with its database or without."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from lab.drills.installation import installed
from lab.drills.recorder import Recorder
from lab.replicas import Replica, serving
from lab.runbook_runs import Actions, lab_server
from novacron.client import Client, load_config
from novacron.local.database_backup import PASSWORD_FILE

KEYS = ("ca.crt", "ca.key", "seal.key")
"""What is to be kept elsewhere of a server's folder."""
PACKAGES = {"client": "/tmp/novacron.deb", "server": "/tmp/novacron-server.deb"}


def server_lost(run: Recorder) -> None:
    """The server's machine is gone, its database is not: a server on another machine takes over."""
    with run.step("an installation runs"):
        served = run.enter_context(serving())
        served.client.create_project("drill-before")
        old = served.replicas[0]
    kept = keep(old.state, run.directory / "kept")
    with run.fault("the server is killed, and its folder is gone"):
        old.server.kill()
        shutil.rmtree(old.state)
    new = Replica(run.directory / "new", served.postgres.url, ())
    run.callback(new.server.kill)
    actions: Actions = {
        f"apt-get install --yes {PACKAGES['client']} {PACKAGES['server']}": lambda: put_back(kept, new.state),
        "novacron server --settings /etc/novacron/server.toml --check-settings": lambda: check_settings(new),
        "systemctl restart novacron-server": new.start,
        "systemctl is-active novacron-server": lambda: "active" if new.server.running else "inactive",
    }
    lead_to(run, new.url)
    run.run_runbook(lab_server(actions), PACKAGES)
    run.recovered()
    names = {project["name"] for project in Client(load_config()).list("projects")}
    assert "drill-before" in names, "what was accepted before is lost"
    run.loss_s = 0.0
    run.record_history()


def server_and_database_lost(run: Recorder) -> None:
    """The server's machine is gone with its database; what is left is the repository, its password, and keys."""
    with run.step("an installation runs, and its database is archived"):
        site = run.enter_context(installed(run.directory))
    with run.step("changes are accepted, and the first ones are archived"):
        last = site.write_for_a_while()
    kept = keep(site.state / "server", run.directory / "kept")
    shutil.copy(site.state / PASSWORD_FILE, kept)
    with run.fault("server and PostgreSQL are killed, and their folder is gone"):
        lost_at = datetime.now(UTC)
        site.kill()
        shutil.rmtree(site.state)

    def stop() -> None:
        """The package has started a server with an empty database; its folder then gets what was kept."""
        site.state.mkdir(mode=0o755)
        put_back(kept, site.state / "server")
        shutil.copy(kept / PASSWORD_FILE, site.state)

    actions: Actions = {**site.actions(), "systemctl stop novacron-server": stop}
    run.run_runbook(lab_server(actions), {**PACKAGES, "repository": str(site.repository)})
    run.recovered()
    with run.step("what is there is compared with what was accepted"):
        written = site.written_at()
        assert "drill-first" in written, "what was archived is lost"
        newest = max(written.values())
        run.loss_s = 0.0 if newest >= last else (lost_at - newest).total_seconds()
        site.write("drill-after")
    run.record_history()


def keep(state: Path, to: Path) -> Path:
    """Copy a server's keys to where its machine's end does not reach."""
    to.mkdir(mode=0o700)
    for name in KEYS:
        shutil.copy(state / name, to)
    return to


def put_back(kept: Path, state: Path) -> None:
    """Put kept keys into the folder of a new server."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in KEYS:
        shutil.copy(kept / name, state)


def check_settings(replica: Replica) -> None:
    """Let a server look at its settings, which the lab has on its command line. Raises CalledProcessError."""
    environment = {**os.environ, **replica.environment}
    subprocess.run([*replica.server.arguments, "--check-settings"], check=True, capture_output=True, env=environment)


def lead_to(run: Recorder, url: str) -> None:
    """Let the old name lead to another machine, as far as commands without settings are concerned."""
    before = os.environ.get("NOVACRON_URL")
    os.environ["NOVACRON_URL"] = url

    def undo() -> None:
        if before is None:
            os.environ.pop("NOVACRON_URL", None)
        else:
            os.environ["NOVACRON_URL"] = before

    run.callback(undo)
