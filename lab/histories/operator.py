"""What an operator does after a bad day: starts what has ended, and does what errors ask for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

from lab.histories import census
from lab.histories.copies import place_beside
from lab.platform import Platform, Service
from lab.switched import SwitchedLab
from novacron import pki
from novacron.client import ApiError, Unreachable
from novacron.qemu import running

HELP_AFTER_S = 15.0
"""An agent that is not connected for so long is looked after once more."""
NODES_S_MAX, POLL_S = 150.0, 0.3
TAIL_LINES = 40


class Operator:
    """Brings a platform back to work. ``gone`` are VMs that were deleted, whatever an older database says."""

    def __init__(self, platform: Platform, gone: set[str]) -> None:
        self._platform, self._gone = platform, gone
        self._helped_at: dict[str, float] = {}
        self.said: list[str] = []
        """What had to be done by hand."""

    def bring_back(self) -> None:
        """Start what does not run, mend the network, and wait until all nodes are ready. Raises AssertionError."""
        lab = self._platform.lab
        assert isinstance(lab, SwitchedLab)
        for host in lab.hosts:
            lab.plug(host)
            lab.mend_management(host, self._platform.ports)
        self.start_control_plane()
        deadline = time.monotonic() + NODES_S_MAX
        while missing := [name for name in self._platform.agents if not self._is_connected(name)]:
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"UNSETTLED: {missing} do not come back; {self.said}\n{self._platform.tails(TAIL_LINES)}"
                )
            for name in missing:
                self._help(name)
            time.sleep(POLL_S)
        for name in self._platform.agents:
            self._platform.client.act("nodes", name, "uncordon", {"bring_back": False})

    def start_control_plane(self) -> None:
        """Start PostgreSQL and the server if they do not run."""
        if self._platform.postgres.process is None or self._platform.postgres.process.poll() is not None:
            self._platform.postgres.start()
        if not self._platform.server.running:
            self._platform.server.start()
        self._platform.wait_ready()

    def _is_connected(self, name: str) -> bool:
        try:
            self._platform.client.metrics(name)
        except (ApiError, Unreachable):
            return False
        return self._platform.agents[name].running

    def _help(self, name: str) -> None:
        agent, now = self._platform.agents[name], time.monotonic()
        if not agent.running:
            said = agent.tail(5)
            if "run with other files" in said:
                self._end_vms_elsewhere(name)
            agent.start(*self._platform.join(name))
            self._helped_at[name] = now
        elif now - self._helped_at.setdefault(name, now) > (0 if self._is_ended(name) else HELP_AFTER_S):
            self._rejoin(name, agent)
            self._helped_at[name] = now

    def _is_ended(self, name: str) -> bool:
        """Say whether a node's certificate has ended."""
        certificate = census.state_dir_of(self._platform.directory, name) / "identity" / "node.crt"
        try:
            return pki.validity(certificate.read_bytes()).objection(time.time()) is not None
        except (OSError, ValueError):
            return False

    def _end_vms_elsewhere(self, name: str) -> None:
        """End the VMs that run with files of another folder of this node, before its agent uses the present one."""
        state = census.state_dir_of(self._platform.directory, name)
        copy = census.state_dir_of(self._platform.directory, place_beside(name))
        for qemu in running.running():
            if qemu.state_dir in (str(state), str(copy)) and (
                qemu.directory is None or not qemu.directory.is_relative_to(state)
            ):
                self.said.append(f"ended {qemu.vm} on {name}, which ran with other files")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(qemu.pid, signal.SIGKILL)

    def _rejoin(self, name: str, agent: Service) -> None:
        """Let a host join again that the server does not know, or knows with a later key."""
        state = census.state_dir_of(self._platform.directory, name)
        option, token = self._platform.join(name)
        command = [*agent.arguments, f"--re{option.removeprefix('--')}", token]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=agent.env)
        self.said.append(f"{name} joins again: {(done.stdout or done.stderr).splitlines()[:1]}")
        if done.returncode != 0:  # another key has its place: what is here can only join as a new host
            agent.kill()
            (state / "identity").rename(state / f"identity.{time.monotonic_ns()}")
            agent.start(*self._platform.join(name))

    def reconcile(self) -> None:
        """Say of each unreconciled VM who is right: the node that has it; or the database, if it was not deleted."""
        client = self._platform.client
        items = list(client.list("unreconciled-vms"))
        had = {item["vm"] for item in items if item["claim"] == "owner"}
        running_at = {each.vm: each.host for each in census.processes(self._platform.directory)}
        unsure = {item["vm"] for item in items if item["contradiction"] == "damaged"} - had
        for vm, name in {item["vm"]: item["vm_name"] for item in items}.items():
            with contextlib.suppress(ApiError):  # it is asked again until all is at rest
                if vm in had and vm not in self._gone:
                    client.adopt_vm(vm)
                elif vm in unsure and vm in running_at and vm not in self._gone:
                    client.adopt_vm(vm, node=running_at[vm], confirm=name)
                elif vm in unsure:
                    client.forget_vm(vm, name)
                elif vm in self._gone:
                    client.adopt_vm(vm, confirm=name)
                else:
                    client.forget_vm(vm, name)
                self.said.append(f"reconciled {name}: a node has it: {vm in had}, deleted: {vm in self._gone}")
