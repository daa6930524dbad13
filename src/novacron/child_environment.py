"""The environment of programs that agents, servers and commands run: nothing of their own, which may hold secrets."""

from __future__ import annotations

import os
from collections.abc import Mapping

PATH_DEFAULT = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KEPT = ("PATH", "TMPDIR", "TZ")
NOTHING: Mapping[str, str] = {}
POSTGRES = "PG"
"""Begins the variables that PostgreSQL's programs read (libpq), such as that of a certificate's file."""


def clean(more: Mapping[str, str] = NOTHING, *, prefix: str | None = None) -> dict[str, str]:
    """Return the environment of a child: a few harmless variables of this process, those that begin with ``prefix``,
    and ``more``."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    if prefix:
        kept |= {name: value for name, value in os.environ.items() if name.startswith(prefix)}
    return {"PATH": PATH_DEFAULT, "LC_ALL": "C.UTF-8", **kept, **more}
