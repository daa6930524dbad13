# Copyright: NovaCron developers
# Licensed under the Apache License, Version 2.0
"""What the module and the inventory have in common: NovaCron's command line, asked for JSON."""

from __future__ import annotations

import json

NOT_FOUND = 3
"""Exit code of the command line for an object that is not there."""


class CommandFailed(Exception):
    """The command line refused or failed: its words."""


def environment(context, project):
    """Return the variables that choose an installation and a project."""
    chosen = {"NOVACRON_CONTEXT": context, "NOVACRON_PROJECT": project}
    return {name: value for name, value in chosen.items() if value}


def decoded(code, out, err, *allowed):
    """Return what a command has printed as JSON; None: it ended with a code that is allowed. Raises CommandFailed."""
    if code in allowed:
        return None
    if code != 0:
        raise CommandFailed((err.strip() or out.strip() or f"ended with {code}")[-2000:])
    try:
        return json.loads(out) if out.strip() else None
    except ValueError as error:
        raise CommandFailed(f"printed no JSON ({error}): {out[:200]}") from error
