"""Contexts of the CLI, and an administrator who has lost the only token, with real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.platform import open_directory
from lab.replicas import Served, serving
from novacron import context_file
from novacron.client import ApiError, Client, Config, Unreachable
from novacron.local.postgres import Postgres
from tests.waiting import until


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as served:
        yield served


def cli(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NOVACRON_")}
    return subprocess.run(
        [sys.executable, "-m", "novacron", *arguments], check=False, capture_output=True, text=True, timeout=60,
        env={**environment, "NOVACRON_CONFIG": str(config)},
    )  # fmt: skip


def recover(served: Served, config: Path, *more: str) -> subprocess.CompletedProcess[str]:
    replica = served.replicas[0]
    return cli(
        config, "server", "recover-admin", "--database", served.postgres.url, "--state-dir", str(replica.state.parent),
        "--url", replica.url, *more,
    )  # fmt: skip


def test_an_administrator_s_token_is_recovered_beside_what_the_settings_hold(served: Served, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    with context_file.changing(config) as contexts:
        contexts.add("other", context_file.Context("https://other.example:7443", "the only copy"))
    done = recover(served, config)
    assert done.returncode == 0, done.stderr
    contexts = context_file.read(config)
    assert contexts.current == "other" and contexts.get("other").token == "the only copy"
    assert contexts.get("recovered").token == done.stdout.strip() and "the only copy" not in done.stderr
    assert "novacron context use recovered" in done.stderr
    until(lambda: cli(config, "--context", "recovered", "node", "list").returncode == 0, "the token is good")
    whoami = json.loads(cli(config, "--context", "recovered", "whoami", "-o", "json").stdout)
    assert whoami["user"] == "administrator"
    events = [event["reason"] for event in served.client.list("events", limit=50)]
    assert "AdministratorRecovered" in events
    records = [record for record in served.client.list("audit", limit=50) if record["action"] == "recover_admin"]
    assert len(records) == 1 and records[0]["outcome"] == "done" and "server's machine" in records[0]["actor"]


def test_recovery_can_revoke_the_other_tokens_and_makes_a_user_who_is_missing(served: Served, tmp_path: Path) -> None:
    config, url, ca = tmp_path / "config.json", served.client.config.url, served.client.config.ca
    first = recover(served, config, "--user", "rescuer")
    assert first.returncode == 0, first.stderr
    second = recover(served, config, "--user", "rescuer", "--revoke-others")
    assert "1 others revoked" in second.stderr

    def refused() -> bool:
        try:
            next(iter(Client(Config(url, first.stdout.strip(), ca)).list("nodes")), None)
        except ApiError as error:
            return error.status == 401
        return False

    until(refused, "the token of before is refused")
    list(Client(Config(url, second.stdout.strip(), ca)).list("tokens"))
    assert list(served.client.list("tokens")), "tokens of other users stay"


def test_recovery_says_what_it_cannot_reach(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    nothing = cli(config, "server", "recover-admin", "--state-dir", str(tmp_path / "nothing"))
    assert nothing.returncode == 1 and "there is no database in" in nothing.stderr and "--database" in nothing.stderr
    away = cli(config, "server", "recover-admin", "--database", "postgresql://x@127.0.0.1:1/x")
    assert away.returncode == 1 and "can't use the database" in away.stderr and "Traceback" not in away.stderr
    assert not config.exists()


def test_an_embedded_database_that_does_not_run_is_started_for_the_recovery(tmp_path: Path) -> None:
    with open_directory("nvr-") as directory:
        postgres = Postgres(directory / "postgres")
        postgres.start()
        postgres.stop()
        config = directory / "config.json"
        done = cli(config, "server", "recover-admin", "--state-dir", str(directory))
        assert done.returncode == 0, done.stderr
        assert context_file.read(config).current == "recovered"
        postgres.start()  # it was stopped, and its folder is free
        postgres.stop()


def test_contexts_are_managed_by_commands(served: Served, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    settings = served.client.config
    (tmp_path / "ca.crt").write_text(settings.ca)
    add = ("context", "add", "east", "--url", settings.url, "--token", settings.token, "--ca", str(tmp_path / "ca.crt"))
    assert cli(config, *add).returncode == 0
    assert "exists" in cli(config, *add).stderr
    assert cli(config, "context", "add", "west", "--url", "https://127.0.0.1:1", "--token", "x").returncode == 0
    assert cli(config, "node", "list").returncode == 0
    assert cli(config, "--context", "west", "node", "list").returncode == 6
    assert cli(config, "context", "use", "west").returncode == 0
    listed = json.loads(cli(config, "context", "list", "-o", "json").stdout)
    assert [(entry["name"], entry["current"]) for entry in listed] == [("east", False), ("west", True)]
    assert cli(config, "--context", "east", "node", "list").returncode == 0
    shown = cli(config, "context", "show", "east").stdout
    assert settings.url in shown and "its own, until 20" in shown and settings.token not in shown
    assert cli(config, "context", "rename", "east", "home").returncode == 0
    assert cli(config, "context", "remove", "west").returncode == 0
    assert cli(config, "node", "list").returncode == 6, "none is used now"
    assert cli(config, "context", "use", "west").returncode == 2
    changed = cli(config, "context", "add", "home", "--replace", "--project", "blue")
    assert changed.returncode == 0 and context_file.read(config).get("home").token == settings.token


def test_the_first_start_adds_a_context_and_damages_no_settings(served: Served, tmp_path: Path) -> None:
    config = Path(os.environ["NOVACRON_CONFIG"])
    contexts = context_file.read(config)
    assert contexts.names() == ["local"] and contexts.current == "local"
    assert config.stat().st_mode & 0o777 == 0o600
    with pytest.raises(Unreachable, match="can't read the settings"):
        damaged = tmp_path / "damaged.json"
        damaged.write_text("nonsense")
        environment = pytest.MonkeyPatch()
        with environment.context() as patched:
            patched.setenv("NOVACRON_CONFIG", str(damaged))
            Client()
    assert served.client.config.token == contexts.get("local").token
