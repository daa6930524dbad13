"""The settings of rollouts: options of ``novacron rollout``, which a TOML file can give, too."""

from __future__ import annotations

import dataclasses
import re
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from novacron import private_file, settings_file
from novacron.rollout.model import Colour

SETTINGS = Path("/etc/novacron/rollout.toml")
STATE_DIR = Path("/var/lib/novacron/rollout")
VERSION = re.compile(r"^[0-9A-Za-z][0-9A-Za-z.+~_-]{0,63}\Z")
SECRET_BYTES_MAX = 4096


class InstancesKind(StrEnum):
    """What runs the servers."""

    SYSTEMD = "systemd"
    PROCESSES = "processes"


SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings", is_eager=True, help="TOML file with any of these options; the command line wins over it"
    ),
]


@settings_file.with_variables("NOVACRON_ROLLOUT")
@dataclasses.dataclass(frozen=True)
class RolloutOptions:
    """How rollouts are done on this host."""

    state_dir: Annotated[Path, typer.Option(help="directory for the journal of rollouts")] = STATE_DIR
    instances: Annotated[
        InstancesKind, typer.Option(help="what runs the servers: units of systemd, or processes of their own")
    ] = InstancesKind.SYSTEMD
    root: Annotated[
        Path, typer.Option(help="directory of installed versions, and of the links blue and green to two of them")
    ] = Path("/opt/novacron/rollout")
    packages: Annotated[
        Path | None,
        typer.Option(help="directory with novacron-server_VERSION_*.deb, or with wheels, from which versions come"),
    ] = None
    environment: Annotated[
        list[str] | None,
        typer.Option(metavar="VERSION=DIR", help="Python environment that has a version already; can be repeated"),
    ] = None
    server_settings: Annotated[
        str, typer.Option(help="settings file of a colour's server; {colour} stands for blue or green")
    ] = "/etc/novacron/server-{colour}.toml"
    blue_url: Annotated[str, typer.Option(metavar="URL", help="where the blue server answers itself")] = (
        "https://127.0.0.1:7543"
    )
    green_url: Annotated[str, typer.Option(metavar="URL", help="where the green server answers itself")] = (
        "https://127.0.0.1:7643"
    )
    ca: Annotated[Path, typer.Option(help="certificate of the installation's authority")] = Path(
        "/var/lib/novacron/blue/server/ca.crt"
    )
    token_file: Annotated[Path | None, typer.Option(help="file with an administrator's API token, for smoke tests")] = (
        None
    )
    smoke: Annotated[bool, typer.Option(help="use the new version before it gets requests")] = True
    smoke_image: Annotated[
        str, typer.Option(help="image of the VM that the smoke test makes if a node has it; none: no VM")
    ] = "tiny"
    haproxy_config: Annotated[Path, typer.Option(help="HAProxy's configuration, in which weights are kept")] = Path(
        "/etc/haproxy/haproxy.cfg"
    )
    haproxy_socket: Annotated[Path, typer.Option(help="HAProxy's admin socket, at which weights are set")] = Path(
        "/run/haproxy/admin.sock"
    )
    haproxy_program: Annotated[str, typer.Option(help="program that checks its configuration")] = "haproxy"
    haproxy_wait: Annotated[float, typer.Option(min=1, max=600, help="seconds that HAProxy may be away")] = 20
    backend: Annotated[str, typer.Option(help="HAProxy's backend of the API, whose requests are divided")] = "api"
    node_backends: Annotated[
        str, typer.Option(help="backends of what needs a node's link, separated by commas: they move at the end")
    ] = "agents,nodes"
    health_tries: Annotated[int, typer.Option(min=1, max=1000, help="times to ask whether a server is ready")] = 30
    health_every: Annotated[float, typer.Option(min=0.1, max=600, help="seconds between them")] = 10
    shares: Annotated[str, typer.Option(help="percentages of the requests that a canary gets, in turn")] = "1,10,50,100"
    step: Annotated[float, typer.Option(min=1, max=86_400, help="seconds for which each share is watched")] = 900
    watch: Annotated[
        float, typer.Option(min=1, max=86_400, help="seconds for which blue-green watches after the switch")
    ] = 120
    check_every: Annotated[float, typer.Option(min=0.2, max=3600, help="seconds between two checks")] = 60
    settle: Annotated[
        float, typer.Option(min=0, max=3600, help="seconds after which missing measurements end a share")
    ] = 60
    prometheus: Annotated[
        str | None, typer.Option(metavar="URL", help="Prometheus that measures both colours; a canary needs one")
    ] = None
    prometheus_ca: Annotated[Path | None, typer.Option(help="authority of its certificate, if not a public one")] = None
    window: Annotated[int, typer.Option(min=2, max=3600, help="seconds of measurements that are looked at")] = 120
    errors_max: Annotated[float, typer.Option(min=0, max=100, help="percentage of requests that may fail, at most")] = (
        1.0
    )
    p95_ms_max: Annotated[float, typer.Option(min=1, help="95th percentile of the response time, at most")] = 500
    errors_above: Annotated[
        float, typer.Option(min=0, max=100, help="percentage by which more may fail than of the old version")
    ] = 0.5
    p95_times: Annotated[
        float, typer.Option(min=1, help="how many times slower than the old version, once above 100 ms")
    ] = 2.0
    worse_checks: Annotated[
        int, typer.Option(min=1, max=100, help="checks in a row at which it has to be worse than the old version to go")
    ] = 2
    least_requests: Annotated[
        int, typer.Option(min=1, help="requests without which HAProxy's count of failures says nothing")
    ] = 20
    drain: Annotated[
        float, typer.Option(min=0, max=3600, help="seconds that requests in progress have before a server ends")
    ] = 30
    stop_limit: Annotated[
        float, typer.Option(min=1, max=600, help="seconds after which a server that does not end is killed")
    ] = 90
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="HTTPS address that is told of beginnings, ends and ways back")
    ] = None
    webhook_secret_file: Annotated[
        Path | None, typer.Option(help="file with the secret that signs what it is told")
    ] = None
    webhook_ca: Annotated[Path | None, typer.Option(help="authority of its certificate, if not a public one")] = None
    grafana: Annotated[
        str | None, typer.Option(metavar="URL", help="Grafana that gets an annotation for each step")
    ] = None
    grafana_token_file: Annotated[Path | None, typer.Option(help="file with a token for that")] = None
    grafana_ca: Annotated[Path | None, typer.Option(help="authority of its certificate, if not a public one")] = None
    textfile: Annotated[
        Path | None,
        typer.Option(help="file for metrics, such as node_exporter's textfile directory/novacron_rollout.prom"),
    ] = None
    waves: Annotated[
        str, typer.Option(help="agents: how many nodes have had the new version after each wave, as numbers or shares")
    ] = "1,10%,50%,100%"
    wave_watch: Annotated[
        float, typer.Option(min=0, max=86_400, help="agents: seconds for which each wave is watched")
    ] = 300
    agent_node: Annotated[
        list[str] | None,
        typer.Option(help="agents: only this node; can be repeated: they have their turn in this order"),
    ] = None
    reach: Annotated[
        str, typer.Option(help="agents: program that runs a command as root on the host of {node}, with its arguments")
    ] = "ssh -o BatchMode=yes -o ConnectTimeout=10 root@{node}"
    nodes_at_once: Annotated[
        int, typer.Option(min=1, max=100, help="agents: nodes of a wave that are worked on at the same time")
    ] = 10
    install_limit: Annotated[
        float, typer.Option(min=10, max=7200, help="agents: seconds that an installation may take")
    ] = 900
    agent_back: Annotated[
        float, typer.Option(min=1, max=3600, help="agents: seconds until an upgraded agent is connected again")
    ] = 120
    silent: Annotated[
        float, typer.Option(min=0, max=3600, help="agents: seconds for which an upgraded node may be not ready")
    ] = 30
    failed_nodes_max: Annotated[
        int, typer.Option(min=0, max=10_000, help="agents: nodes of a wave that may fail; they alone go back")
    ] = 0
    failed_actions_max: Annotated[
        int, typer.Option(min=0, max=10_000, help="agents: actions that may fail on a wave's nodes and VMs")
    ] = 0
    drain_nodes: Annotated[
        bool, typer.Option(help="agents: move all VMs away before a node is upgraded, and back after that")
    ] = False
    drain_limit: Annotated[
        float, typer.Option(min=10, max=86_400, help="agents: seconds that draining a node may take")
    ] = 7200
    upgrade_system: Annotated[
        list[str] | None,
        typer.Option(help="agents: package of the system to upgrade on drained hosts, such as qemu-system-x86"),
    ] = None
    restart_hosts: Annotated[bool, typer.Option(help="agents: restart each drained host, for a new kernel")] = False
    host_back: Annotated[
        float, typer.Option(min=10, max=7200, help="agents: seconds until a restarted host is reached again")
    ] = 900
    settings_file: SettingsFile = None

    def url(self, colour: Colour) -> str:
        return (self.blue_url if colour is Colour.BLUE else self.green_url).rstrip("/")

    def server_settings_of(self, colour: Colour) -> Path:
        return Path(self.server_settings.replace("{colour}", colour))

    @property
    def late_backends(self) -> tuple[str, ...]:
        return tuple(name for name in self.node_backends.split(",") if name)

    def environments(self) -> dict[str, Path]:
        """Return Python environments by the versions that they have. Raises BadParameter."""
        environments = {}
        for text in self.environment or ():
            version, _, path = text.partition("=")
            if not VERSION.match(version) or not Path(path).is_absolute():
                raise typer.BadParameter(f"{text!r}: write it like 1.2.0=/opt/one", param_hint="--environment")
            environments[version] = Path(path)
        return environments

    def check_agents(self) -> None:
        """Look at what rollouts of agents need, before anything is done. Raises BadParameter."""
        try:
            words = shlex.split(self.reach)
        except ValueError:
            words = []
        if not any("{node}" in word for word in words[1:]):
            raise typer.BadParameter(
                f"{self.reach!r}: write it like ssh root@{{node}}; {{node}} stands for the node's name",
                param_hint="--reach",
            )
        self._check_notices()

    def check(self) -> None:
        """Look at all that can be seen before anything is done. Raises BadParameter."""
        self.environments()
        if "{colour}" not in self.server_settings:
            raise typer.BadParameter("{colour} is missing: both would be the same", param_hint="--server-settings")
        for option, url, schemes in (
            ("--blue-url", self.blue_url, ("https",)),
            ("--green-url", self.green_url, ("https",)),
            ("--prometheus", self.prometheus, ("http", "https")),
        ):
            check_url(option, url, schemes)
        secret("--token-file", self.token_file)
        self._check_notices()
        if self.smoke and self.token_file is None:
            raise typer.BadParameter(
                "smoke tests need an API token: name its file, or leave them out with --no-smoke",
                param_hint="--token-file",
            )

    def _check_notices(self) -> None:
        check_url("--webhook", self.webhook, ("https",))
        check_url("--grafana", self.grafana, ("http", "https"))
        secret("--webhook-secret-file", self.webhook_secret_file)
        secret("--grafana-token-file", self.grafana_token_file)
        if self.webhook is not None and self.webhook_secret_file is None:
            raise typer.BadParameter("without it nobody could trust the webhook", param_hint="--webhook-secret-file")


def check_url(option: str, url: str | None, schemes: tuple[str, ...]) -> None:
    """Raise BadParameter if a URL can't be one of these schemes, or has a password in it."""
    if url is None:
        return
    try:
        parts = urlsplit(url)
        valid = parts.scheme in schemes and parts.hostname and not parts.username and (parts.port or 1)
    except ValueError:
        valid = False
    if not valid:
        raise typer.BadParameter(f"{url!r}: write it like {schemes[-1]}://host.example.net:9090", param_hint=option)


def secret(option: str, path: Path | None) -> str | None:
    """Return what a file with a secret says; None without a file. Raises BadParameter."""
    if path is None:
        return None
    try:
        if private_file.readable_by_others(path):
            raise typer.BadParameter(
                f"every user can read {path}, which holds a secret: chmod o-r {path}", param_hint=option
            )
        with path.open("rb") as file:
            text = file.read(SECRET_BYTES_MAX).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"can't read {path}: {error}", param_hint=option) from None
    if not text:
        raise typer.BadParameter(f"{path} is empty", param_hint=option)
    return text
