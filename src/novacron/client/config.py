"""Which API to call: from the environment, or the file that ``novacron up`` and ``novacron login`` write."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from novacron.client.errors import Unreachable


class Config(NamedTuple):
    """Where the API is, who calls, whom to trust (PEM), and in which project.

    An empty project means: create in the caller's own, list all that the caller sees.
    """

    url: str
    token: str
    ca: str
    project: str = ""


def config_path() -> Path:
    """Return the path of the settings: ``NOVACRON_CONFIG``, or the user's configuration directory."""
    base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(os.environ.get("NOVACRON_CONFIG") or base / "novacron" / "config.json")


def load_config() -> Config:
    """Return the settings; ``NOVACRON_URL``, ``NOVACRON_TOKEN`` and ``NOVACRON_PROJECT`` override the file.

    Raises Unreachable if there is no URL or no token.
    """
    path = config_path()
    stored: dict[str, str] = {}
    if path.exists():
        stored = json.loads(path.read_text())
    url = os.environ.get("NOVACRON_URL") or stored.get("url")
    token = os.environ.get("NOVACRON_TOKEN") or stored.get("token")
    if not url or not token:
        raise Unreachable(
            f"no API settings: neither {path} nor NOVACRON_URL and NOVACRON_TOKEN are there\n"
            "start a platform with: novacron up"
        )
    project = os.environ.get("NOVACRON_PROJECT") or stored.get("project", "")
    return Config(url, token, stored.get("ca", ""), project)
