"""The environment of programs that a host's agent runs: nothing of the agent's own, which may hold secrets."""

from __future__ import annotations

import os
from collections.abc import Mapping

PATH_DEFAULT = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KEPT = ("PATH", "TMPDIR")
NOTHING: Mapping[str, str] = {}


def clean(more: Mapping[str, str] = NOTHING) -> dict[str, str]:
    """Return the environment of a child: a few harmless variables of this process, and ``more``."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {"PATH": PATH_DEFAULT, "LC_ALL": "C.UTF-8", **kept, **more}
