"""Writes the reference of the settings of server and agent (``script/generate``)."""

from __future__ import annotations

from enum import Enum

from novacron.rollout.options import RolloutOptions
from novacron.service_options import AgentOptions, ServerOptions
from novacron.settings_file import ONCE, Setting, settings

HEAD = """# Settings of server, agent and rollouts

Made of `src/novacron/service_options.py` and `src/novacron/rollout/options.py` by `script/generate`.

Each setting can be given in three ways. The first that gives it counts:

1. on the command line: `--link-port 7444`
2. as an environment variable: `NOVACRON_SERVER_LINK_PORT=7444`. Lists are separated by spaces.
3. in the file that `--settings` names, which is TOML: `link-port = 7444`. The packages' units use
   `/etc/novacron/server.toml` and `/etc/novacron/agent.toml`; `novacron rollout` uses `/etc/novacron/rollout.toml`
   if it is there.

`novacron server --settings /etc/novacron/server.toml --check-settings` prints what counts and where it comes from, and
starts nothing; so does `novacron agent`. A file is checked as a whole before anything starts: unknown names, values of
the wrong kind and values out of range are all listed, and the service ends with status 2. `--rejoin` and `--new-keys`
count once, so they are not allowed in a file. A file with a password in it must not be readable by all users.

Further environment variables: `NOVACRON_LOG_LEVEL` (`debug`, `info`, `warning` or `error`), and those of
[traces](../observability.md).
"""


def page() -> str:
    """Return the page."""
    tables = (("Server", ServerOptions), ("Agent", AgentOptions), ("Rollouts", RolloutOptions))
    return HEAD + "".join(f"\n## {title}\n\n{_table(options)}" for title, options in tables)


def _table(options: type) -> str:
    lines = ["| setting | environment | value | default | meaning |", "|---|---|---|---|---|"]
    lines += [_row(setting) for setting in settings(options) if setting.name not in ONCE]
    return "\n".join(lines) + "\n"


def _row(setting: Setting) -> str:
    default = setting.default.value if isinstance(setting.default, Enum) else setting.default
    shown = "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
    variables = ", ".join(f"`{variable}`" for variable in setting.variables)
    return f"| `{setting.name}` | {variables} | {setting.kind} | {shown} | {setting.help.replace('|', chr(92) + '|')} |"
