"""Practice for on-call people: a platform of the lab is broken, and they mend it. Checks tell whether it is mended.

The lab has no systemd. A folder with programs of the same names stands in for it: put before others in PATH, what is
typed on a host, also by ``novacron runbook run --here``, does what it would do there.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from lab.drills import certificates, nodes
from lab.drills.platforms import small_platform
from lab.platform import Platform, open_directory, until
from novacron.terminal import say

ROOT = Path(__file__).parents[2]
NODE = "host-b"
LIMIT_S = 1800.0
LOOK_S = 0.5
HELD_LOOKS = 3
"""So many looks in a row have to find it mended: what works for a moment is not mended."""
SYSTEMCTL = """#!{python}
import pathlib, sys, time
requests = pathlib.Path({requests!r})
name = f"{{time.time_ns()}}"
(requests / f"{{name}}.new").write_text(" ".join(sys.argv[1:]))
(requests / f"{{name}}.new").rename(requests / f"{{name}}.asked")
answer = requests / f"{{name}}.answer"
for _ in range(300):
    if answer.exists():
        print(answer.read_text(), end="")
        sys.exit(0)
    time.sleep(0.1)
sys.exit("the practice does not answer: does it still run?")
"""
"""It asks the practice, which owns the processes, to do it."""
NOTHING = "#!/bin/sh\nexit 0\n"


class Exercise(NamedTuple):
    """Something that is broken, and how one sees that it is mended."""

    name: str
    what: str
    alert: str
    """What fires."""
    breaks: Callable[[Platform, contextlib.ExitStack], str]
    """Breaks it; returns what else the person has to know."""
    is_mended: Callable[[Platform], bool]
    needs_root: bool = False


def _stop_agent(site: Platform, after: contextlib.ExitStack) -> str:
    site.agents[NODE].kill()
    site.wait_node(NODE, ready=False)
    return ""


def _fill_disk(site: Platform, after: contextlib.ExitStack) -> str:
    state = after.enter_context(nodes.small_disk(site, NODE))
    nodes.fill(state)
    until(lambda: nodes.disk_reason(site, NODE) == "DiskFull", "the node says that its disk is full", 90)
    return f"The disk of {NODE} is mounted at {state}."


def _end_certificate(site: Platform, after: contextlib.ExitStack) -> str:
    certificates.let_end(site)
    site.agents[NODE].start()
    site.wait_node(NODE, ready=False)
    return (
        f"The agent's log is {site.agents[NODE].log}, its state folder {site.directory / NODE}: commands on the host"
        f" take --name {NODE} --state-dir {site.directory / NODE}"
    )


def _kill_server(site: Platform, after: contextlib.ExitStack) -> str:
    site.server.kill()
    return ""


def _is_ready(site: Platform) -> bool:
    node = site.client.get("nodes", NODE)
    return bool(node["status"]["ready"]) and site.agents[NODE].running


def _has_room(site: Platform) -> bool:
    node = site.client.get("nodes", NODE)
    return (
        bool(node["status"]["ready"]) and nodes.disk_reason(site, NODE) != "DiskFull" and not node["spec"]["cordoned"]
    )


def _answers(site: Platform) -> bool:
    return site.server.running and bool(list(site.client.list("nodes", limit=1)))


ALL = (
    Exercise("stopped-agent", "a node is lost", "NodeDown", _stop_agent, _is_ready),
    Exercise("full-disk", "a node takes no VMs", "NodeDiskUnusable", _fill_disk, _has_room, needs_root=True),
    Exercise("expired-certificate", "a node is lost, and its agent runs", "NodeDown", _end_certificate, _is_ready),
    Exercise("stopped-server", "nobody answers", "ServiceDown", _kill_server, _answers),
)
NAMES = tuple(exercise.name for exercise in ALL)


def named(name: str) -> Exercise | None:
    """Return an exercise by its name."""
    return next((exercise for exercise in ALL if exercise.name == name), None)


def run(exercise: Exercise, limit_s: float = LIMIT_S, told: Callable[[Path], None] = lambda _: None) -> float | None:
    """Break a platform and wait until it is mended; return how long that took, or None if it was not.

    ``told`` is called with the exercise's folder once the person may begin.
    """
    with open_directory("nvx-") as directory, small_platform(directory) as site, contextlib.ExitStack() as after:
        site.client.create_vm(name="shop", image="tiny", memory_mib=64, node="host-a")
        with _programs(directory) as requests:
            hint = exercise.breaks(site, after)
            (directory / "alert.json").write_text(json.dumps(alert(exercise)))
            say(task(exercise, directory, site, hint))
            told(directory)
            took_s = _until_mended(exercise, site, requests, limit_s)
    if took_s is None:
        say(f"{exercise.name}: not mended within {limit_s / 60:.0f} minutes; read the runbook that its alert leads to")
    else:
        say(f"{exercise.name}: mended after {took_s:.0f} s")
    return took_s


def alert(exercise: Exercise) -> dict[str, object]:
    """Return an alert as Alertmanager sends it."""
    labels = {"alertname": exercise.alert, "severity": _rule(exercise.alert)["labels"]["severity"], "node": NODE}
    return {"alerts": [{"status": "firing", "labels": labels}]}


def _rule(name: str) -> dict[str, dict[str, str]]:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/rules/alerts.yml").read_text())["groups"]
    found: dict[str, dict[str, str]] = next(
        rule for group in groups for rule in group["rules"] if rule.get("alert") == name
    )
    return found


def task(exercise: Exercise, directory: Path, site: Platform, hint: str) -> str:
    """Return what the person on call is told."""
    rule = _rule(exercise.alert)
    said = rule["annotations"]
    lines = [
        "",
        f"You are on call. {exercise.alert} ({rule['labels']['severity']}) fires: {exercise.what}.",
        f"  {said['description']}",
        f"  node: {NODE}; runbook: {said['runbook_url']}",
        "",
        "Open another terminal, and type there:",
        f"  export NOVACRON_CONFIG={site.config} PATH={directory / 'bin'}:{Path(sys.executable).parent}:$PATH",
        f"  novacron runbook run --alert {directory / 'alert.json'} --dry-run",
        "",
        f"All hosts are this machine: systemctl there is that of {NODE}, and of the server.",
        *([hint] if hint else []),
        "Checks here tell when it is mended. Ctrl-C gives up, and removes all of it.",
    ]
    return "\n".join(lines)


@contextlib.contextmanager
def _programs(directory: Path) -> Iterator[Path]:
    """Make the programs that stand for those of a host; return the folder of what they ask for."""
    requests, programs = directory / "requests", directory / "bin"
    requests.mkdir()
    programs.mkdir()
    texts = {"systemctl": SYSTEMCTL.format(python=sys.executable, requests=str(requests))}
    for name in ("journalctl", "chronyc"):
        texts[name] = NOTHING
    for name, text in texts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    yield requests


def _until_mended(exercise: Exercise, site: Platform, requests: Path, limit_s: float) -> float | None:
    """Do what the person asks of systemctl, and look whether it is mended."""
    began, held = time.monotonic(), 0
    while time.monotonic() < began + limit_s:
        for asked in sorted(requests.glob("*.asked")):
            _serve(asked, site)
        try:
            held = held + 1 if exercise.is_mended(site) else 0
        except Exception:  # nobody answers: it is not mended, whatever that is
            held = 0
        if held >= HELD_LOOKS:
            return time.monotonic() - began
        time.sleep(LOOK_S)
    return None


def _serve(asked: Path, site: Platform) -> None:
    words = asked.read_text().split()
    answer = asked.with_suffix(".answer.new")
    answer.write_text(_systemctl(words, site))
    answer.rename(asked.with_suffix(".answer"))
    asked.unlink()


def _systemctl(words: list[str], site: Platform) -> str:
    """Do a command of systemctl; return what it prints."""
    units = {"novacron-agent": site.agents[NODE], "novacron-server": site.server}
    service = next(
        (units[word.removesuffix(".service")] for word in words if word.removesuffix(".service") in units), None
    )
    if service is None or not words:
        return "this practice has the units novacron-agent and novacron-server\n"
    match words[0]:
        case "start" | "restart":
            if words[0] == "restart":
                service.stop()
            if not service.running:
                service.start()
            return ""
        case "stop":
            service.stop()
            return ""
        case "is-active":
            return "active\n" if service.running else "inactive\n"
        case "status":
            return f"{'active (running)' if service.running else 'failed'}\n{service.tail()}\n"
    return "this practice has start, stop, restart, is-active and status\n"


def is_root() -> bool:
    """Say whether exercises may mount."""
    return os.geteuid() == 0
