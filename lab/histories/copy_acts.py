"""Acts with agents that work from copies of state folders."""

from __future__ import annotations

import math
import time

from lab.histories.scene import Scene

REFUSED_S, POLL_S = 6.0, 0.3
"""Less than another host has to be silent before this one takes its place (``store.leases.ANOTHER_HOST_S``)."""


class CopyActs(Scene):
    """Each returns what was done, for whoever reads of a violation."""

    def _starts_copy_beside(self) -> str:
        """An agent is started from a copy on the same host: the original works, is dead, or its host was off."""
        node = self._a_node_here()
        if node not in self.platform.agents:
            return "of nobody: all are away"
        how = self.random.choice(("beside its original", "instead of its original", "after its host was off"))
        copy = self._copy_of(node, older=self.random.random() < 0.5)
        if how != "beside its original":
            self.folders_lost = True
            self.platform.agents[node].kill()
        if how == "after its host was off":
            self._loses_power(node)
        self.agents_of_copies.start_beside(node, copy)
        return f"of {node}, {how}"

    def _starts_copy_elsewhere(self) -> str:
        """An agent is started from a copy on another host, while the original works: it is refused."""
        node, noted = self._a_node_here(), self.random.random() < 0.4
        if self._ask(lambda: self.platform.client.metrics(node)) is None:
            return f"nothing: {node} is not connected"
        agent = self.agents_of_copies.start_elsewhere(node, self._copy_of(node), moved=False, noted=noted)
        if agent is None:
            return f"nothing: {node} has no folder"
        until_s = time.monotonic() + REFUSED_S
        while agent.running and time.monotonic() < until_s and "the server refuses this node" not in agent.tail():
            time.sleep(POLL_S)
        self.agents_of_copies.end_elsewhere()
        return f"of {node}" + ("" if noted else ", which does not know its host") + f": {agent.tail(1)[-150:]}"

    def _moves_to_spare(self) -> str:
        """A host is off for good, as it seems, and a copy of its folder goes on at another one."""
        node = self._a_node_here()
        if node not in self.platform.agents or self.agents_of_copies.node_elsewhere:
            return "of nobody: the others are away"
        self.folders_lost = True
        copy = self._copy_of(node, older=self.random.random() < 0.3)
        self._loses_power(node)
        if self.agents_of_copies.start_elsewhere(node, copy, moved=True) is None:
            return f"nothing: {node} has no folder"
        self._away[node] = math.inf
        return f"of {node}"

    def _ends_copies(self) -> None:
        """Those agents end, and perhaps what they run."""
        self._away.pop(self.agents_of_copies.node_elsewhere, None)
        self.agents_of_copies.end(with_vms=lambda: self.random.random() < 0.5)
