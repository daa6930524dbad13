"""What is set up of each service: its unit, settings file, folders and state."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from novacron.extras import Extra
from novacron.service_options import STATE_DIR, AgentOptions, ServerOptions

SETTINGS_DIR = Path("/etc/novacron")
ENVIRONMENT_DIR = Path("/etc/default")
JOIN_TOKEN = SETTINGS_DIR / "join-token"
ROOT, SERVER_USER = "root", "novacron"


class OwnedFolder(NamedTuple):
    """A folder as it must be."""

    path: Path
    mode: int = 0o755
    owner: str = ROOT
    group: str = ROOT


class HostService(NamedTuple):
    """A service of a host, as its package brings it."""

    name: str
    extra: Extra
    options: type
    title: str
    """First line of its settings file."""
    group: str
    """Group that may read the settings file."""
    folders: tuple[OwnedFolder, ...]
    users: str = ""
    """File with its user, for systemd-sysusers; empty: it runs as root."""

    @property
    def unit(self) -> str:
        return f"{self.name}.service"

    @property
    def settings(self) -> Path:
        return SETTINGS_DIR / f"{self.extra.value}.toml"

    @property
    def environment(self) -> Path:
        """Return the file with environment variables of its unit, which win over its settings file."""
        return ENVIRONMENT_DIR / self.name


POSTGRES = OwnedFolder(STATE_DIR / "postgres", 0o700, SERVER_USER, SERVER_USER)
DATABASE_UNIT = "novacron-database.service"
COMMON = (OwnedFolder(SETTINGS_DIR), OwnedFolder(STATE_DIR))
SERVER = HostService(
    "novacron-server",
    Extra.SERVER,
    ServerOptions,
    "Settings of novacron-server. After changes: systemctl restart novacron-server",
    SERVER_USER,
    COMMON,
    users="novacron-server.conf",
)
AGENT = HostService(
    "novacron-agent",
    Extra.AGENT,
    AgentOptions,
    "Settings of novacron-agent. After changes: systemctl restart novacron-agent. VMs keep running.",
    ROOT,
    (*COMMON, OwnedFolder(STATE_DIR / "images")),
)
