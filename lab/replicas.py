"""Servers without nodes: one installation's replicas over one PostgreSQL."""

from __future__ import annotations

import itertools
import os
import shutil
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3

from lab.copied_postgres import CopiedPostgres
from lab.platform import Service, open_directory, until
from lab.ports import free_ports
from novacron.client import Client, load_config
from novacron.local.postgres import Postgres


class Replica:
    """One server process with its settings; ``database`` is a URL."""

    def __init__(self, directory: Path, database: str, more: tuple[str, ...]) -> None:
        self.state = directory / "server"
        given = dict(itertools.pairwise(more)).get("--tls-authority")
        self.trusted = self.state / "ca.crt" if given is None else Path(given)
        """The authority of the certificate that the API shows."""
        self.port, link_port = free_ports(2)
        arguments = [
            "server", "--state-dir", str(directory), "--port", str(self.port),
            "--link-port", str(link_port), *more,
        ]  # fmt: skip
        self.environment = {"NOVACRON_CONFIG": str(directory / "config.json")}
        directory.mkdir(mode=0o700)
        # A URL may have a password in it, and all users see command lines.
        environment = {**self.environment, "NOVACRON_DATABASE_URL": database}
        self.server = Service("server", arguments, directory / "server.log", [], environment)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def is_ready(self) -> bool:
        """Say whether it reports that it serves everything, asked as a load balancer asks."""
        if not (self.state / "ca.crt").exists():
            return False
        context = ssl.create_default_context(cadata=self.trusted.read_text())
        try:
            with urllib3.PoolManager(ssl_context=context) as pool:
                return bool(pool.request("GET", f"{self.url}/readyz", retries=False, timeout=2).data == b"ok\n")
        except urllib3.exceptions.HTTPError:
            return False

    def start(self) -> None:
        self.server.start()
        until(self.is_ready, "the server is ready", 60)


class Served:
    """Replicas with their database, and an administrator's client of the first."""

    def __init__(self, replicas: list[Replica], postgres: Postgres, client: Client) -> None:
        self.replicas, self.postgres, self.client = replicas, postgres, client

    @property
    def server(self) -> Service:
        return self.replicas[0].server


@contextmanager
def serving(*more: str, replicas: int = 1) -> Iterator[Served]:
    """Run servers, each with these further arguments, for as long as the block runs."""
    before = os.environ.get("NOVACRON_CONFIG")
    with open_directory("nvk-") as directory:
        postgres = CopiedPostgres(directory / "pg")
        postgres.start()
        started: list[Replica] = []
        try:
            for number in range(replicas):
                home = directory / f"replica-{number}"
                started.append(Replica(home, postgres.url, more))
                if number:  # an installation has one CA
                    started[-1].state.mkdir(mode=0o700, parents=True)
                    for name in ("ca.crt", "ca.key"):
                        shutil.copy(started[0].state / name, started[-1].state / name)
                if number == 0:
                    started[0].server.start()
                    until(lambda: (started[0].state / "ca.crt").exists(), "the CA is made", 60)
                    until(started[0].is_ready, "the server is ready", 60)
                else:
                    started[-1].start()
            os.environ.update(started[0].environment)
            yield Served(started, postgres, Client(load_config()))
        finally:
            for replica in started:
                replica.server.kill()
            postgres.stop()
            if before is not None:
                os.environ["NOVACRON_CONFIG"] = before
