"""Which API to call: from the environment, or a context of the file that servers and ``novacron context`` write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from novacron import context_file
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


def context_name() -> str:
    """Return the name of the context to use: ``NOVACRON_CONTEXT``, or the current one of the settings; empty: none.

    Raises SettingsError.
    """
    return os.environ.get("NOVACRON_CONTEXT") or context_file.read(config_path()).current


def load_config() -> Config:
    """Return the settings of the context to use; ``NOVACRON_URL``, ``NOVACRON_TOKEN`` and ``NOVACRON_PROJECT`` override
    them.

    Raises Unreachable if there is no URL or no token, or no such context.
    """
    path = config_path()
    stored = context_file.Context("", "")
    try:
        name = context_name()
        if name:
            stored = context_file.read(path).get(name)
    except context_file.SettingsError as error:
        raise Unreachable(str(error)) from None
    url = os.environ.get("NOVACRON_URL") or stored.url
    token = os.environ.get("NOVACRON_TOKEN") or stored.token
    if not url or not token:
        raise Unreachable(
            f"no API settings: neither a context of {path} nor NOVACRON_URL and NOVACRON_TOKEN are there:"
            " choose a context with: novacron context use NAME, or start a platform with: novacron up"
        )
    return Config(url, token, stored.ca, os.environ.get("NOVACRON_PROJECT") or stored.project)
