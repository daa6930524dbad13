"""One history: what is done is drawn from a seed; then everything comes to rest, and is looked at."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lab.histories import census, copies, verdict
from lab.histories.certificate_acts import CertificateActs
from lab.histories.copy_acts import CopyActs
from lab.histories.operator import Operator
from lab.histories.themes import THEMES, Theme
from lab.histories.watch import TwiceWatch
from lab.platform import Platform, until
from lab.switched import SwitchedLab
from novacron.client import ApiError, Unreachable
from novacron.model.lease import LEASE_S, MARGIN_S

VMS_AT_FIRST, VMS_MAX, ACTS = (2, 3), 5, (8, 14)
PAUSE_S_MAX = 1.2
REST_S_MAX, CLEAN_S_MAX, POLL_S = 150.0, 60.0, 0.3
NETWORK = "lan"
IMAGES = ("tiny", "tiny", "disk")
MEMORY_MIB = 64
HA_CHANCE = 0.5
AWAY_S = LEASE_S + MARGIN_S + 6.0
"""How long a node is away whose highly available VMs are to fail over."""
HA_RUNS_S, LATE_S = 10.0, 8.0

T = TypeVar("T")


class Broken(AssertionError):
    """A promise was broken: says which, and what was done."""


class History(CopyActs, CertificateActs):
    """One history on a platform that is at rest and empty, and is so again afterwards unless it is broken."""

    def run(self) -> None:
        """Raises Broken."""
        operator = Operator(self.platform, self.gone)
        try:
            with TwiceWatch(self.platform.directory) as watch:
                self._happen(operator)
            self.guests_seen = watch.ran, watch.looks
            if watch.found:
                raise AssertionError("; ".join(watch.found))
            self._clear()
        except (AssertionError, ApiError, Unreachable) as error:
            raise Broken(
                f"{error}\ndone: {', '.join(self.done)}\nby hand: {', '.join(operator.said) or 'nothing'}\n"
                f"again: .venv/bin/python -m lab.histories --first {self.seed} --count 1"
            ) from error

    def _happen(self, operator: Operator) -> None:
        """Do what the seed says, and let everything come to rest."""
        self.platform.client.create_network(NETWORK)
        for _ in range(self.random.randint(*VMS_AT_FIRST)):
            self._creates()
        if self.theme is Theme.LEASES:
            self._is_away_for_long()
        for _ in range(self.random.randint(*ACTS)):
            self._act()
            time.sleep(self.random.uniform(0, PAUSE_S_MAX))
        if self.theme is Theme.LEASES:
            self._lets_fail_over()
        self._away.clear()
        self.agents_of_copies.end(with_vms=lambda: self.random.random() < 0.5)
        operator.bring_back()
        self._rest(operator)

    # acts

    def _act(self) -> None:
        acts: tuple[tuple[int, Callable[[], str | None]], ...] = (
            (3, self._creates), (3, self._starts), (3, self._stops), (7, self._migrates), (1, self._deletes),
            (2, self._drains), (2, self._uncordons), (3, self._kills_agent), (3, self._kills_qemu),
            (2, self._kills_server), (1, self._kills_postgres), (2, self._pulls_cable), (2, self._cuts_management),
            (3, self._mends), (2, self._copies_folder), (2, self._moves_folder_away), (1, self._removes_folder),
            (2, self._puts_folder_back), (1, self._backs_database_up), (1, self._puts_database_back),
            (1, self._switches_ha),
        )  # fmt: skip
        has = THEMES[self.theme]
        acts = tuple((weight, act) for weight, act in acts if act.__name__ not in has.without)
        acts += tuple((weight, getattr(self, name)) for name, weight in has.acts.items())
        act = self.random.choices([act for _, act in acts], [weight for weight, _ in acts])[0]
        self._note(act.__name__.strip("_"), act())

    def _creates(self) -> str | None:
        if len(self.made) >= VMS_MAX:
            return "nothing: there are enough"
        self._names += 1
        name, image = f"vm-of-{self.seed}-{self._names}", self.random.choice(IMAGES)
        nics = [{"network": NETWORK}] if self.random.random() < 0.5 else []
        fields = {"name": name, "image": image, "memory_mib": MEMORY_MIB, "nics": nics}
        ha = self.random.random() < HA_CHANCE or (self.theme is Theme.LEASES and self._names == 1)
        if ha:
            fields |= {"ha": True, "own_disk": False}
        vm = self._ask(lambda: self.platform.client.create_vm(**fields))
        if vm is not None:
            self.made[vm["id"]] = name
        return f"{name} of {image}" + (", highly available" if ha else "")

    def _switches_ha(self) -> str:
        name, ha = self._a_vm(), self.random.random() < 0.7
        self._ask(lambda: self.platform.client.configure_vm(name, ha=ha))
        return f"of {name} to {ha}"

    def _act_on_vm(self, action: str, body: dict[str, Any] | None = None) -> str:
        name = self._a_vm()
        self._ask(lambda: self.platform.client.act("vms", name, action, body))
        return name

    def _starts(self) -> str:
        return self._act_on_vm("start")

    def _stops(self) -> str:
        return self._act_on_vm("stop", {"timeout_s": self.random.choice((0, 0, 2))})

    def _migrates(self) -> str:
        node = self._a_node()
        return f"{self._act_on_vm('migrate', {'target': node})} to {node}"

    def _deletes(self) -> str:
        name = self._a_vm()
        for id in [id for id, other in self.made.items() if other == name]:
            if self.platform.server.running:  # also without an answer it may be done
                del self.made[id]
                self.gone.add(id)
        self._ask(lambda: self.platform.client.delete("vms", name))
        return name

    def _drains(self) -> str:
        node = self._a_node()
        self._ask(lambda: self.platform.client.act("nodes", node, "drain", {"policy": "throttle"}))
        return node

    def _uncordons(self) -> str:
        node, back = self._a_node(), self.random.random() < 0.3
        self._ask(lambda: self.platform.client.act("nodes", node, "uncordon", {"bring_back": back}))
        return node

    # what befalls processes and links

    def _kills_agent(self) -> str:
        node, again = self._a_node_here(), self.random.random() < 0.5
        if node not in self.platform.agents:
            return "of nobody: all are away"
        self.platform.agents[node].kill()
        if again:
            self.platform.agents[node].start()
        return f"of {node}" + (", and starts it" if again else "")

    def _kills_qemu(self) -> str:
        found = census.processes(self.platform.directory)
        if not found:
            return "of nothing"
        process = self.random.choice(sorted(found))
        _kill(process.pid)
        return f"of {process.vm} on {process.host}"

    def _kills_server(self) -> None:
        self.platform.server.kill()
        if self.random.random() < 0.7:
            self._control_plane()

    def _kills_postgres(self) -> None:
        self.platform.postgres.kill()
        if self.random.random() < 0.8:
            self._control_plane()

    def _pulls_cable(self) -> str:
        host = self.random.choice(self.platform.lab.hosts)
        _switched(self.platform).pull(host)
        return host.name

    def _cuts_management(self) -> str:
        host = self.random.choice(self.platform.lab.hosts)
        with contextlib.suppress(KeyError):  # it is cut off already
            self.platform.lab.cut_management(host)
        return host.name

    def _mends(self) -> None:
        for host in self.platform.lab.hosts:
            if not self._is_away(host.name):
                _switched(self.platform).plug(host)
                self.platform.lab.mend_management(host, self.platform.ports)
        self._control_plane()
        for name, agent in self.platform.agents.items():
            if not agent.running and not self._is_away(name):
                agent.start()

    def _is_away_for_long(self) -> None:
        """A node that runs a highly available VM is off, or cut off, for longer than its lease lasts."""
        node = self._node_of_ha()
        ways = (self._loses_power, self._is_cut_off, self._loses_its_agent)
        way = self.random.choice(ways)
        if node is not None:
            way(node)
            self._away[node] = time.monotonic() + AWAY_S
            self._note(way.__name__.strip("_"), f"of {node} for {AWAY_S:.0f} s")

    def _lets_fail_over(self) -> None:
        """Wait until the node's VMs have failed over; not for longer: a user may have stopped them meanwhile."""
        away_s = max([0.0, *(until_s - time.monotonic() for until_s in self._away.values())])
        with contextlib.suppress(AssertionError):
            until(self._failed_over, "a VM has failed over", away_s + LATE_S if away_s else 0.0)

    def _failed_over(self) -> int:
        """Return how often a VM was started elsewhere because its node was away."""
        events = self._ask(lambda: list(self.platform.client.list("events"))) or []
        own = f"vm-of-{self.seed}-"
        return sum(each["reason"] == "RestartedElsewhere" and each["name"].startswith(own) for each in events)

    def _node_of_ha(self) -> str | None:
        """Return where a highly available VM runs, once one does."""

        def found() -> str | None:
            vms = self.platform.client.list("vms")
            return next((vm["node"] for vm in vms if vm["spec"]["ha"] and vm["status"]["state"] == "running"), None)

        with contextlib.suppress(AssertionError):
            return until(found, "a highly available VM runs", HA_RUNS_S)
        return None

    def _is_cut_off(self, node: str) -> None:
        host = self.platform.host(node)
        _switched(self.platform).pull(host)
        self.platform.lab.cut_management(host)

    def _loses_its_agent(self, node: str) -> None:
        """Its highly available VMs end with the lease."""
        self.platform.agents[node].kill()

    # what befalls state folders

    def _moves_folder_away(self) -> str:
        node, off = self._a_node_here(), self.random.random() < 0.3
        if node not in self.platform.agents:
            return "of nobody: all are away"
        self.folders_lost = True
        self.platform.agents[node].kill()
        if off:
            self._loses_power(node)
        self._put_aside(node)
        self._join(self.platform.agents[node], node)
        return f"of {node}" + (", which lost power" if off else "")

    def _removes_folder(self) -> str:
        node = self._a_node_here()
        if node not in self.platform.agents:
            return "of nobody: all are away"
        self.folders_lost = True
        self.platform.agents[node].kill()
        shutil.rmtree(self._state(node), ignore_errors=True)
        self._join(self.platform.agents[node], node)
        return f"of {node}"

    def _puts_folder_back(self) -> str:
        node, off = self._a_node_here(), self.random.random() < 0.6
        copy = self._copies.pop(node, None)
        if copy is None or not copy.exists():
            return self._copies_folder()
        self.folders_lost = True
        self.platform.agents[node].kill()
        if off:
            self._loses_power(node)
        self._put_aside(node)
        copy.rename(self._state(node))
        self.platform.agents[node].start()
        return f"of {node}" + (", which lost power" if off else "")

    # what befalls the database

    def _backs_database_up(self) -> None:
        self.platform.postgres.stop()
        backup = self.platform.postgres.directory / "backup"
        shutil.rmtree(backup, ignore_errors=True)
        _copy_owned(self.platform.postgres.data, backup)
        self._backup = dict(self.made), backup
        self._control_plane()

    def _puts_database_back(self) -> str | None:
        if self._backup is None:
            self._backs_database_up()
            return "nothing: it is backed up"
        then, backup = self._backup
        self._backup = None
        self.platform.server.kill()
        self.platform.postgres.stop()
        shutil.rmtree(self.platform.postgres.data)
        backup.rename(self.platform.postgres.data)
        known = {process.vm for process in census.processes(self.platform.directory)}
        self.gone |= {id for id in then if id not in self.made}
        # Of a VM that was made since, and that runs nowhere, nobody may know.
        self.made = {
            id: name for id, name in self.made.items() if id in then or (id in known and not self.folders_lost)
        }
        self._control_plane()
        return None

    # rest

    def _rest(self, operator: Operator) -> None:
        deadline, wrong = time.monotonic() + REST_S_MAX, ["it has just begun"]
        while wrong:
            operator.reconcile()
            wrong = self._wrong()
            if wrong and time.monotonic() > deadline:
                raise AssertionError("; ".join(wrong) + f"\n{self.platform.tails(25)}")
            if wrong:
                time.sleep(POLL_S)
                self._start_again()
        self.failovers = self._failed_over()

    def _wrong(self) -> list[str]:
        vms = list(self.platform.client.list("vms"))
        return verdict.wrong(
            vms, census.processes(self.platform.directory), verdict.Expectation(self.made, self.folders_lost)
        )

    def _start_again(self) -> None:
        """Start VMs of which nobody can tell whether their guests had powered off: that is asked of operators."""
        for vm in self.platform.client.list("vms"):
            if vm["status"].get("record_lost") and vm["status"]["state"] != "running":
                self._ask(lambda vm=vm: self.platform.client.act("vms", vm["id"], "start"))  # type: ignore[misc]

    def _clear(self) -> None:
        """Delete all VMs, and check that nothing is left. Raises AssertionError."""
        client = self.platform.client
        for vm in client.list("vms"):
            client.delete("vms", vm["id"])
        until(lambda: not list(client.list("vms")), "ORPHAN: all VMs are deleted", CLEAN_S_MAX)
        client.delete("networks", NETWORK)
        directory, hosts = self.platform.directory, self.platform.lab.hosts
        beside = [copies.place_beside(host.name) for host in hosts]
        try:
            until(lambda: not census.left_over(directory, hosts, beside), "nothing is left over", CLEAN_S_MAX)
        except AssertionError:
            raise AssertionError(f"ORPHAN: {census.left_over(directory, hosts, beside)}") from None
        self.agents_of_copies.remove()
        for folder in (*self._aside, *self._copies.values()):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self.platform.postgres.directory / "backup", ignore_errors=True)


def _switched(platform: Platform) -> SwitchedLab:
    assert isinstance(platform.lab, SwitchedLab)
    return platform.lab


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _copy_owned(source: Path, target: Path) -> None:
    """Copy a folder with its owners."""
    shutil.copytree(source, target, copy_function=_copy_file)
    for path in (target, *target.rglob("*")):
        status = (source / path.relative_to(target)).stat()
        os.chown(path, status.st_uid, status.st_gid)


def _copy_file(source: str, target: str) -> str:
    return str(shutil.copy2(source, target))
