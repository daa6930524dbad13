"""A drill of certificates: a node's has ended, and the node gets another one without losing its place."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from lab.drills.platforms import small_platform
from lab.drills.recorder import Recorder
from lab.platform import Platform, until
from novacron import pki, private_file
from novacron.agent.identity import Identity

NODE = "host-b"
DAY_S = 86_400.0
REFUSED = "the server refuses this node"


def expired(run: Recorder) -> None:
    """A node was away until its certificate ended; it rejoins with a token, and keeps its name."""
    with run.step("a platform of two nodes runs"):
        site = run.enter_context(small_platform(run.directory))
    agent = site.agents[NODE]
    with run.fault(f"the certificate of {NODE} has ended"):
        let_end(site)
    seen = agent.log.stat().st_size
    agent.start()
    with run.step("the agent says that the server refuses it, and why"):
        until(lambda: REFUSED in agent.log.read_text()[seen:], "the agent says that it is refused", 60)
    run.detected()
    with run.step("the node rejoins with a token"):
        rejoin(site)
    with run.step("the node is ready"):
        site.wait_node(NODE)
    run.recovered()
    ends_at_s = site.client.get("nodes", NODE)["status"]["certificate_ends_at_s"]
    assert ends_at_s > time.time() + (pki.NODE_DAYS - 1) * DAY_S, "its certificate is the old one"


def let_end(site: Platform) -> None:
    """Stop a node's agent, and let its certificate have ended yesterday."""
    site.agents[NODE].stop()
    identity = Identity(site.directory / NODE / "agent" / "identity", "", NODE)
    authority = pki.Authority.open(site.directory / "s" / "server", lambda: time.time() - (pki.NODE_DAYS + 1) * DAY_S)
    pki.write_secret(identity.certificate, authority.issue_node(identity.request(identity.name), identity.name))


def rejoin(site: Platform) -> None:
    """Do what the how-to on certificates says."""
    token = site.directory / "rejoin.token"
    private_file.write(token, site.client.join_token(NODE).encode())
    done = subprocess.run(
        [*site.host(NODE).enter, sys.executable, "-m", "novacron", "agent", "--rejoin", f"@{token}",
         "--name", NODE, "--state-dir", str(site.directory / NODE)],
        check=False, capture_output=True, text=True, timeout=60, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, f"novacron agent --rejoin: {done.stderr}"
