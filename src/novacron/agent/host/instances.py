"""What the things of one agent on its host are called: its id is in the names of its networks, files and rules."""

from __future__ import annotations

import hashlib
from pathlib import Path

from novacron.net import tunnels

RUN_DIR = Path("/run/novacron")
PREFIX = "novacron-"
"""With what the names of agents' namespaces begin."""
INSTANCE_CHARS = 8
NOTE_SUFFIX = "agent"
"""Of the file in which an agent notes who it is."""


def instance_of(state_dir: Path) -> str:
    """Return the id of an agent on its host, which follows from its state folder."""
    return hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:INSTANCE_CHARS]


def prefix_of(instance: str) -> str:
    """Return with what the names of one agent's namespaces begin."""
    return f"{PREFIX}{instance}-"


def mark_of(instance: str, vm: str) -> str:
    """Return the mark of what an agent makes on its host for a VM."""
    return f"{instance} {vm}"


def table_of(instance: str) -> str:
    """Return the name of an agent's tables of rules."""
    return f"novacron_{instance}"


def tunnel_of(instance: str) -> str:
    """Return the name of an agent's interface for encrypted tunnels."""
    return f"{tunnels.ENCRYPTED[:-1]}{instance}"
