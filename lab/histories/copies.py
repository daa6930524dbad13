"""Agents that work from copies of state folders: beside the original on its host, or on another host."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from lab import another_host
from lab.agent_networks import remove_all
from lab.histories import census
from lab.hosts import Host
from lab.platform import Platform, Service
from lab.switched import SwitchedLab
from novacron.agent.host.instances import instance_of

DWCP_PORT = "7446"
"""Of an agent beside another one."""
END_S = 30.0


def place_beside(node: str) -> str:
    """Return what a copy on the node's own host is called: the folder below which it is."""
    return f"copy-{node.removeprefix('host-')}"


class Copies:
    """Those of one history."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        assert isinstance(platform.lab, SwitchedLab)
        self._lab = platform.lab
        self._beside: dict[str, Service] = {}
        self._elsewhere: Service | None = None
        self.node_elsewhere = ""
        """The node whose folder was copied to the spare host."""
        self.ran = 0
        """How many VMs ran from copies when those ended."""

    @property
    def spare(self) -> Host:
        """The host that is no node's."""
        return self._lab.spares[0]

    def start_beside(self, node: str, source: Path) -> None:
        """Start an agent from a copy of a folder, on the node's own host."""
        self.end_beside(node, with_vms=True)
        place = place_beside(node)
        if copy(source, census.state_dir_of(self._platform.directory, place)):
            changed = {"--state-dir": str(self._platform.directory / place), "--dwcp-port": DWCP_PORT}
            self._beside[node] = self._start(node, place, self._platform.host(node), changed)

    def end_beside(self, node: str, *, with_vms: bool) -> None:
        """End that agent; perhaps what runs of its VMs, too."""
        agent = self._beside.get(node)
        if agent is None:
            return
        self._count(place_beside(node))
        agent.kill()
        if with_vms:
            end_processes(self._platform.directory, place_beside(node))

    def start_elsewhere(self, node: str, source: Path, *, moved: bool, noted: bool = True) -> Service | None:
        """Start an agent from a copy of a folder on the spare host; None: there is nothing to copy.

        ``moved``: somebody says first that the folder was moved there for good. Not ``noted``: nothing in the folder
        says which host it comes from, as if both hosts were installed from one image.
        """
        self.end_elsewhere()
        place = self.spare.name
        state = census.state_dir_of(self._platform.directory, place)
        if not copy(source, state):
            return None
        if not noted:
            (state / "host.json").unlink(missing_ok=True)
        self._lab.mend_management(self.spare, self._platform.ports)
        changed = {"--state-dir": str(self._platform.directory / place), "--advertise": self.spare.address}
        self._elsewhere, self.node_elsewhere = self._start(node, place, self.spare, changed, moved=moved), node
        return self._elsewhere

    def end_elsewhere(self) -> None:
        """Switch the spare host off."""
        agent, self._elsewhere, self.node_elsewhere = self._elsewhere, None, ""
        if agent is None:
            return
        self._count(self.spare.name)
        agent.kill()
        self._lab.switch_off(self.spare)
        state = census.state_dir_of(self._platform.directory, self.spare.name)
        census.remove_cgroups(instance_of(state))
        remove_all(state)

    def end(self, *, with_vms: Callable[[], bool]) -> None:
        """End all; VMs that run from a copy beside its original go on if ``with_vms`` says so."""
        for node in self._beside:
            self.end_beside(node, with_vms=with_vms())
        self.end_elsewhere()

    def _count(self, place: str) -> None:
        self.ran += sum(process.host == place for process in census.processes(self._platform.directory))

    def remove(self) -> None:
        """Remove the copies."""
        self._beside.clear()
        for place in (*(place_beside(node) for node in self._platform.agents), self.spare.name):
            shutil.rmtree(self._platform.directory / place, ignore_errors=True)

    def _start(self, node: str, place: str, host: Host, changed: dict[str, str], *, moved: bool = False) -> Service:
        """Start an agent as a node's own is, with other options."""
        own = self._platform.agents[node]
        options = own.arguments[own.arguments.index("agent") :]
        for option, value in changed.items():
            options[options.index(option) + 1] = value
        program = own.arguments[own.arguments.index("-m") - 1 : own.arguments.index("agent")]
        log = self._platform.directory / f"{place}.log"
        log.unlink(missing_ok=True)  # of an earlier one
        agent = Service(place, [], log, host.enter, {})
        agent.env = dict(own.env)
        if host is self.spare:
            folder = self._platform.directory / place / "ids"
            agent.arguments = [*host.enter, *another_host.command(folder, [*program, *options])]
        else:
            agent.arguments = [*host.enter, *program, *options]
        if moved:
            said = [*agent.arguments, "--state-moved"]
            subprocess.run(said, check=True, capture_output=True, timeout=END_S, env=agent.env)
        agent.start()
        return agent


def copy(source: Path, target: Path) -> bool:
    """Copy a state folder; say whether there was one."""
    shutil.rmtree(target, ignore_errors=True)
    with contextlib.suppress(OSError):  # what goes at this moment, sockets, and a folder that is not there
        shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    return target.exists()


def end_processes(directory: Path, place: str) -> None:
    """End the QEMUs that run on a host, or from a copy."""
    for process in census.processes(directory):
        if process.host == place:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
