"""``novacron up``: PostgreSQL, server and agent of one machine, each its own process, started again when one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

from novacron import context_file
from novacron.agent.host.inventory import default_name
from novacron.agent.host.networks import lacks
from novacron.agent.identity import JOIN_TOKEN
from novacron.client import Client, load_config
from novacron.client.errors import ApiError
from novacron.local.postgres import Postgres, PostgresFailed
from novacron.state_lock import FolderInUse, FolderLock
from novacron.terminal import say

READY_TIMEOUT_S = 60.0
FIRST_NETWORK = "default"
STOP_TIMEOUT_S = 15.0
RESTARTS_MAX = 10
PR_SET_PDEATHSIG = 1
RESTART_WINDOW_S = 300.0
NO_SECRETS: Mapping[str, str] = {}


def _end_with_parent() -> None:
    """Runs in the new process: let the kernel end it when we are killed, so that none is left behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class _Service:
    """A child process that is started again, but not for ever."""

    def __init__(self, name: str, arguments: list[str], secrets: Mapping[str, str] = NO_SECRETS) -> None:
        """``secrets`` are environment variables of its own."""
        self.name = name
        self._arguments = arguments
        self._secrets = secrets
        self._starts: list[float] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._starts = [t for t in self._starts if time.monotonic() - t < RESTART_WINDOW_S] + [time.monotonic()]
        if len(self._starts) > RESTARTS_MAX:
            raise RuntimeError(f"{self.name} ended {RESTARTS_MAX} times in {RESTART_WINDOW_S:.0f} s: giving up")
        command = [sys.executable, "-m", "novacron", *self._arguments]
        # A session of its own: Ctrl-C reaches only us, and we end the services in order.
        self.process = subprocess.Popen(
            command, start_new_session=True, preexec_fn=_end_with_parent, env={**os.environ, **self._secrets}
        )

    def ensure(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            say(f"{self.name} ended with {self.process.returncode}: starting it again", err=True)
            self.start()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def _wait_ready(service: _Service) -> Client:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            client = Client(load_config())
            next(iter(client.list("nodes", limit=1)), None)
            return client
        except Exception as error:  # something is not ready yet: settings, port, token; the limit below counts
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server is not ready after {READY_TIMEOUT_S:.0f} s: {error}") from error
        service.ensure()
        time.sleep(0.1)


def _own_config(state_dir: Path, config: Path) -> Path:
    """Return where this installation's CLI settings are: in its own folder, or in the user's if an earlier version made
    them there."""
    own = state_dir / "config.json"
    begun_before = (state_dir / "postgres" / "data").exists()
    return config if begun_before and not own.exists() else own


def _offer(own: Path, config: Path) -> str:
    """Make an installation's context one of the user's; return its name there.

    Raises SettingsError, OSError.
    """
    mine = context_file.read(own)
    context = mine.get(mine.current)
    with context_file.changing(config) as contexts:
        name = contexts.name_of(context.url, context.token) or contexts.add_beside("local", context)
        return name if contexts.current != name else ""


def _settings(own: Path, config: Path) -> str:
    """Say where the settings are and which command uses them."""
    try:
        name = _offer(own, config)
    except (context_file.SettingsError, OSError) as error:
        say(f"can't add this installation to the settings: {error}", err=True)
        return f"settings in {own}; try: NOVACRON_CONFIG={own} novacron"
    return f"settings in {config}; try: novacron{f' --context {name}' if name else ''}"


class How(NamedTuple):
    """How to run."""

    bridge: str | None
    """A bridge of the host's for VMs that are in no network."""
    port: int
    dwcp_host: str
    network: bool
    """Begin with a network for VMs that name none."""


def _begin_with_network(client: Client, how: How) -> None:
    """Make a new installation's first network, in which VMs are that name none; say why where there can be none."""
    if how.bridge is not None:
        return
    lacking = ["not root"] if os.geteuid() != 0 else lacks()
    if lacking:
        say(f"VMs get no network of their own: {'; '.join(lacking)}", err=True)
        return
    try:
        network = client.create_network(FIRST_NETWORK, is_default=True)
        say(f"VMs are in network {FIRST_NETWORK}, {network['spec']['subnet']}, unless they name another")
    except ApiError as error:
        if error.status != HTTPStatus.CONFLICT:  # an earlier start has made it, and got no further
            raise RuntimeError(f"can't create network {FIRST_NETWORK}: {error}") from error


def _agent(state_dir: Path, images_dir: Path, how: How, secrets: Mapping[str, str]) -> _Service:
    arguments = [
        "agent", "--state-dir", str(state_dir), "--images-dir", str(images_dir), "--dwcp-port", str(how.port + 2),
        "--dwcp-host", how.dwcp_host, "--advertise", "127.0.0.1", *(["--bridge", how.bridge] if how.bridge else []),
    ]  # fmt: skip
    return _Service("agent", arguments, secrets)


def run(state_dir: Path, images_dir: Path, config: Path, how: How) -> int:
    """Run until SIGINT or SIGTERM; return the exit status. VMs are left running."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    state_dir.mkdir(parents=True, exist_ok=True)
    try:
        lock = FolderLock(state_dir, "up.lock")
    except FolderInUse as error:
        say(f"error: {error}", err=True)
        return 1
    own_config = _own_config(state_dir, config)
    os.environ["NOVACRON_CONFIG"] = str(own_config)
    for name in ("NOVACRON_CONTEXT", "NOVACRON_DATABASE_URL"):
        os.environ.pop(name, None)
    postgres = Postgres(state_dir / "postgres")
    services: list[_Service] = []
    try:
        url = postgres.start()
        common = ["--state-dir", str(state_dir)]
        server = _Service(
            "server", ["server", *common, "--port", str(how.port), "--link-port", str(how.port + 1)],
            {"NOVACRON_DATABASE_URL": url},
        )  # fmt: skip
        services.append(server)
        server.start()
        client = _wait_ready(server)
        joined = (state_dir / "agent" / "identity" / "identity.json").exists()
        if how.network and not joined:
            _begin_with_network(client, how)
        secrets = {} if joined else {JOIN_TOKEN: client.join_token(default_name(), accept=True)}
        agent = _agent(state_dir, images_dir, how, secrets)
        services.append(agent)
        agent.start()
        say(f"up: API at {client.config.url}, {_settings(own_config, config)} node list", flush=True)
        while not stopping:
            time.sleep(0.5)
            for service in services:
                service.ensure()
            if postgres.process is not None and postgres.process.poll() is not None:
                say("PostgreSQL ended: starting it again", err=True)
                postgres.start()
        return 0
    except (PostgresFailed, RuntimeError) as error:
        say(f"error: {error}", err=True)
        return 1
    finally:
        for service in reversed(services):
            service.stop()
        postgres.stop()
        lock.release()
