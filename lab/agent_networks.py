"""Networks of agents that a lab has ended: removed, whatever became of the agents."""

from __future__ import annotations

from pathlib import Path

from novacron.agent.host.instances import NOTE_SUFFIX, RUN_DIR, instance_of, prefix_of
from novacron.agent.host.remnants import _remove_network
from novacron.net import namespace


def remove_all(state_dir: Path) -> None:
    """Remove every network of the agent that works in this directory. Raises NetworkFailed."""
    instance = instance_of(state_dir)
    for suffix in ("wireguard", NOTE_SUFFIX):
        (RUN_DIR / f"{instance}.{suffix}").unlink(missing_ok=True)
    for name in namespace.all(prefix_of(instance)):
        _remove_network(name)
