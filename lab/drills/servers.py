"""Drills of the control plane: a server of two ends."""

from __future__ import annotations

import os
import re
import ssl

import urllib3

from lab.drills.recorder import Recorder
from lab.platform import until
from lab.replicas import Replica, Served, serving
from novacron.client import Client

LED = re.compile(r'^novacron_controller_leading\{[^}]*controller="([^"]+)"[^}]*\} 1', re.MULTILINE)
TAKEN_OVER_S_MAX = 60.0


def failover(run: Recorder) -> None:
    """A server of two ends without warning; the other one answers, and leads all controllers."""
    with run.step("an installation of two servers runs"):
        served = run.enter_context(serving(replicas=2))
        first, second = served.replicas
        other = Client(served.client.config._replace(url=second.url))
        every = until(lambda: _all_led(served, first, second), "all controllers are led", TAKEN_OVER_S_MAX)
    with run.step("changes are accepted by the server that will end"):
        names = {f"drill-{os.urandom(4).hex()}" for _ in range(5)}
        for name in names:
            served.client.create_project(name)
    with run.fault("the first server is killed"):
        first.server.kill()
    with run.step("the second server accepts changes"):
        assert second.is_ready(), "the second server is not ready"
        other.create_project("drill-after")
    with run.step("the second server leads all controllers"):
        until(lambda: _led(served, second) >= every, "it leads all controllers", TAKEN_OVER_S_MAX)
    run.recovered()
    kept = {project["name"] for project in other.list("projects")}
    assert names <= kept, f"accepted and lost: {sorted(names - kept)}"
    run.loss_s = 0.0
    with run.step("the first server is started again"):
        first.start()


def _all_led(served: Served, *replicas: Replica) -> set[str] | None:
    """Return which controllers are led, once the two lead all of them."""
    led = [_led(served, replica) for replica in replicas]
    known = _known(served, replicas[0])
    return known if known and set.union(*led) >= known else None


def _led(served: Served, replica: Replica) -> set[str]:
    return set(LED.findall(_metrics(served, replica)))


def _known(served: Served, replica: Replica) -> set[str]:
    pattern = re.compile(r'^novacron_controller_leading\{[^}]*controller="([^"]+)"', re.MULTILINE)
    return set(pattern.findall(_metrics(served, replica)))


def _metrics(served: Served, replica: Replica) -> str:
    context = ssl.create_default_context(cadata=served.client.config.ca)
    headers = {"Authorization": f"Bearer {served.client.config.token}"}
    with urllib3.PoolManager(ssl_context=context, headers=headers) as pool:
        return pool.request("GET", f"{replica.url}/metrics", timeout=5).data.decode()
