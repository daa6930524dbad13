"""An installation without nodes whose database is embedded and archived: what is lost and restored in drills."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import urllib3

from lab.platform import Service, until
from lab.ports import free_ports
from lab.runbook_runs import Actions
from novacron.client import Client, load_config
from novacron.local import database_recovery
from novacron.local.database_backup import PASSWORD_FILE, BackupFailed, BackupPlace
from novacron.local.postgres import Postgres

ARCHIVED_S_MAX = 90.0
LOOK_S = 0.5
WRITTEN_S = 30.0
"""Longer than the archive takes from one piece to the next, so that some of what is written is not in it yet."""


class Installation:
    """One server with its own PostgreSQL, and the repository into which that is archived."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "s"
        self.repository = directory / "repository"
        self.port, link_port = free_ports(2)
        self.environment = {
            "NOVACRON_CONFIG": str(directory / "config.json"),
            "NOVACRON_STATE_DIR": str(self.state),
        }
        arguments = [
            "server", "--port", str(self.port), "--link-port", str(link_port),
            "--backup-repository", str(self.repository),
        ]  # fmt: skip
        self.state.mkdir(mode=0o755)
        self.server = Service("server", arguments, directory / "server.log", [], self.environment)
        self.postgres = Postgres(self.state / "postgres")

    def start(self) -> None:
        self.server.start()
        until(self.is_ready, "the server is ready", 90)

    def is_ready(self) -> bool:
        """Say whether it reports ready, asked as a load balancer asks."""
        if not self.server.running:
            raise AssertionError(f"the server ended:\n{self.server.tail()}")
        return self.answers()

    def answers(self) -> bool:
        authority = self.state / "server" / "ca.crt"
        if not authority.exists():
            return False
        try:
            context = ssl.create_default_context(cadata=authority.read_text())
            with urllib3.PoolManager(ssl_context=context) as pool:
                url = f"https://127.0.0.1:{self.port}/readyz"
                return bool(pool.request("GET", url, retries=False, timeout=2).data == b"ok\n")
        except (urllib3.exceptions.HTTPError, ssl.SSLError):
            return False

    @property
    def client(self) -> Client:
        return Client(load_config())

    def database(self, *arguments: str) -> str:
        """Run a command of ``novacron database`` on its repository; return what it printed. Raises AssertionError."""
        done = subprocess.run(
            [sys.executable, "-m", "novacron", "database", *arguments, "--repository", str(self.repository)],
            check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            env={**os.environ, **self.environment},
        )  # fmt: skip
        if done.returncode != 0:
            raise AssertionError(f"novacron database {arguments[0]}: {done.stderr.strip()}")
        return done.stdout

    def archived_until(self) -> datetime:
        """Return until when the database can be restored now."""
        place = BackupPlace(self.repository, self.state / PASSWORD_FILE)
        try:
            times = [source.until for source in database_recovery.restorable(place)]
        except BackupFailed:  # its repository begins with the first base backup
            times = []
        return max(times, default=datetime.min.replace(tzinfo=UTC))

    def write(self, name: str) -> None:
        """Have a change accepted."""
        self.client.create_project(name)

    def written_at(self) -> dict[str, datetime]:
        """Return what the database has of ``write``, and when each was accepted."""
        listed = self.client.list("projects")
        return {
            project["name"]: datetime.fromisoformat(project["created_at"])
            for project in listed
            if project["name"].startswith("drill-")
        }

    def wait_archived(self, at: datetime) -> None:
        """Wait until the database can be restored as it was at a time."""
        until(lambda: self._is_archived(at), "it is archived", ARCHIVED_S_MAX)

    def _is_archived(self, at: datetime) -> bool:
        time.sleep(LOOK_S)
        return self.archived_until() > at + timedelta(seconds=1)

    def write_for_a_while(self, every_s: float = 1.0) -> datetime:
        """Write again and again, after a first write that is archived; return when the last one was accepted."""
        self.write("drill-first")
        self.wait_archived(self.written_at()["drill-first"])
        deadline, number = time.monotonic() + WRITTEN_S, 0
        while time.monotonic() < deadline:
            number += 1
            self.write(f"drill-{number}")
            time.sleep(every_s)
        self.write("drill-last")
        return self.written_at()["drill-last"]

    def kill(self) -> None:
        """End server and database as a power cut would."""
        self.server.kill()
        with self.postgres.held():  # ends the PostgreSQL that the server has left
            pass

    def actions(self) -> Actions:
        """What the lab does for the commands of runbooks on the server's machine."""
        return {
            "systemctl stop novacron-server": self.server.stop,
            "systemctl start novacron-server": self.start,
            "systemctl restart novacron-server": self.start,
            "systemctl is-active novacron-server": lambda: "active" if self.server.running else "inactive",
        }

    def lose_database(self) -> None:
        """Lose the files of the database, not the folder."""
        self.kill()
        shutil.rmtree(self.postgres.data)


@contextmanager
def installed(directory: Path) -> Iterator[Installation]:
    """Run an installation, which commands without settings mean meanwhile."""
    made = Installation(directory)
    before = {name: os.environ.get(name) for name in made.environment}
    os.environ.update(made.environment)
    try:
        made.start()
        yield made
    finally:
        made.server.stop()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
