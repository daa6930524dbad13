"""One history: what is done is drawn from a seed; then everything comes to rest, and is looked at."""

from __future__ import annotations

import contextlib
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lab.histories import census, copies, verdict
from lab.histories.copies import Copies
from lab.histories.operator import Operator
from lab.histories.themes import THEMES, Theme
from lab.histories.watch import TwiceWatch
from lab.platform import Platform, Service, until
from lab.switched import SwitchedLab
from novacron import pki
from novacron.agent import identity as identities
from novacron.client import ApiError, Unreachable
from novacron.model.errors import NovaError
from novacron.model.lease import LEASE_S, MARGIN_S
from novacron.model.token import decode_ticket

VMS_AT_FIRST, VMS_MAX, ACTS = (2, 3), 5, (8, 14)
PAUSE_S_MAX = 1.2
REST_S_MAX, CLEAN_S_MAX, POLL_S = 150.0, 60.0, 0.3
NETWORK = "lan"
IMAGES = ("tiny", "tiny", "disk")
MEMORY_MIB = 64
HA_CHANCE = 0.5
AWAY_S = LEASE_S + MARGIN_S + 6.0
"""How long a node is away whose highly available VMs are to fail over."""
HA_RUNS_S = 10.0
REFUSED_S = 6.0
"""Less than another host has to be silent before this one takes its place (``store.leases.ANOTHER_HOST_S``)."""

T = TypeVar("T")


class Broken(AssertionError):
    """A promise was broken: says which, and what was done."""


class History:
    """One history on a platform that is at rest and empty, and is so again afterwards unless it is broken."""

    def __init__(self, platform: Platform, seed: int) -> None:
        self.platform, self.seed = platform, seed
        self.random = random.Random(seed)  # noqa: S311 (a history, not a secret)
        self.done: list[str] = []
        """What was done, for whoever reads of a violation."""
        self.made: dict[str, str] = {}
        """VMs whose creation was acknowledged and whose deletion was not asked for, with their names."""
        self.gone: set[str] = set()
        self.folders_lost = False
        self.guests_seen = (0, 0)
        """In how many looks at QEMUs a guest was seen to run, of how many."""
        self.theme = self.random.choices(list(THEMES), [has.chance for has in THEMES.values()])[0]
        self.failovers = 0
        """How often a VM of it was started elsewhere because its node was away."""
        self._names = 0
        self._away: dict[str, float] = {}
        """Until when nodes are off or cut off, though others are mended."""
        self._agents_of_copies = Copies(platform)
        self._aside: list[Path] = []
        self._copies: dict[str, Path] = {}
        self._backup: tuple[dict[str, str], Path] | None = None
        self._began_s = time.monotonic()

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
        time.sleep(max([0.0, *(until_s - time.monotonic() for until_s in self._away.values() if until_s < math.inf)]))
        self._away.clear()
        self._agents_of_copies.end(with_vms=lambda: self.random.random() < 0.5)
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

    def _note(self, act: str, said: str | None) -> None:
        self.done.append(f"{time.monotonic() - self._began_s:.1f} {act} {said or ''}".rstrip())

    def _ask(self, work: Callable[[], T]) -> T | None:
        """Ask the server for something, which may be right to refuse it; None: it did, or did not answer."""
        if not self.platform.server.running:
            return None
        with contextlib.suppress(ApiError, Unreachable):
            return work()
        return None

    def _a_vm(self) -> str:
        return self.random.choice(list(self.made.values()) or ["none"])

    def _a_node(self) -> str:
        return self.random.choice(list(self.platform.agents))

    def _a_node_here(self) -> str:
        """Return a node that is not away, if there is one."""
        return self.random.choice([name for name in self.platform.agents if not self._is_away(name)] or ["none"])

    def _is_away(self, node: str) -> bool:
        return time.monotonic() < self._away.get(node, 0.0)

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

    def _control_plane(self) -> None:
        Operator(self.platform, self.gone).start_control_plane()

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

    def _state(self, node: str) -> Path:
        return census.state_dir_of(self.platform.directory, node)

    def _put_aside(self, node: str) -> None:
        state = self._state(node)
        aside = state.with_name(f"agent-aside-{len(self._aside)}")
        self._aside.append(aside)
        if state.exists():
            state.rename(aside)

    def _join(self, agent: Service, node: str) -> None:
        """Start an agent; with a token, if the server is there to make one."""
        agent.start(*(self._ask(lambda: self.platform.join(node)) or ()))

    def _loses_power(self, node: str) -> None:
        self.platform.agents[node].kill()
        self._agents_of_copies.end_beside(node, with_vms=True)
        copies.end_processes(self.platform.directory, node)

    def _copies_folder(self) -> str:
        node = self._a_node()
        self._copy_of(node)
        return f"of {node}"

    def _copy_of(self, node: str, *, older: bool = False) -> Path:
        """Return a copy of a node's state folder: an ``older`` one, if there is one, or a new one."""
        copy = self._copies.setdefault(node, self._state(node).with_name("agent-copy"))
        if not older or not copy.exists():
            copies.copy(self._state(node), copy)
        return copy

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

    # agents that work from copies of state folders

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
        self._agents_of_copies.start_beside(node, copy)
        return f"of {node}, {how}"

    def _starts_copy_elsewhere(self) -> str:
        """An agent is started from a copy on another host, while the original works: it is refused."""
        node, noted = self._a_node_here(), self.random.random() < 0.4
        if self._ask(lambda: self.platform.client.metrics(node)) is None:
            return f"nothing: {node} is not connected"
        agent = self._agents_of_copies.start_elsewhere(node, self._copy_of(node), moved=False, noted=noted)
        if agent is None:
            return f"nothing: {node} has no folder"
        until_s = time.monotonic() + REFUSED_S
        while agent.running and time.monotonic() < until_s and "the server refuses this node" not in agent.tail():
            time.sleep(POLL_S)
        self._agents_of_copies.end_elsewhere()
        return f"of {node}" + ("" if noted else ", which does not know its host") + f": {agent.tail(1)[-150:]}"

    def _moves_to_spare(self) -> str:
        """A host is off for good, as it seems, and a copy of its folder goes on at another one."""
        node = self._a_node_here()
        if node not in self.platform.agents or self._agents_of_copies.node_elsewhere:
            return "of nobody: the others are away"
        self.folders_lost = True
        copy = self._copy_of(node, older=self.random.random() < 0.3)
        self._loses_power(node)
        if self._agents_of_copies.start_elsewhere(node, copy, moved=True) is None:
            return f"nothing: {node} has no folder"
        self._away[node] = math.inf
        return f"of {node}"

    def _ends_copies(self) -> None:
        """Those agents end, and perhaps what they run."""
        self._away.pop(self._agents_of_copies.node_elsewhere, None)
        self._agents_of_copies.end(with_vms=lambda: self.random.random() < 0.5)

    # what befalls certificates

    def _ends_certificate(self) -> str:
        """A node's certificate has ended; perhaps its agent is started again, or else only notices when it connects."""
        node, again = self._a_node(), self.random.random() < 0.6
        identity = identities.load(self._state(node) / "identity")
        if identity is None:
            return f"of {node}, which has none"
        month_ago = pki.Authority.open(self.platform.directory / "s" / "server", _month_ago_s)
        pki.write_secret(identity.certificate, month_ago.issue_node(identity.request(identity.name), identity.name))
        if again:
            self.platform.agents[node].kill()
            self.platform.agents[node].start()
        return f"of {node}" + (", whose agent starts again" if again else "")

    def _rejoins(self) -> str:
        """A node gets another certificate, whatever its present one is."""
        node = self._a_node()
        identity = identities.load(self._state(node) / "identity")
        token = self._ask(lambda: self.platform.client.join_token(node))
        if identity is None or token is None:
            return f"nothing: {node} has no certificate, or nobody is there to give one"
        with contextlib.suppress(NovaError):  # another key has its place
            identities.rejoin(identity.directory, decode_ticket(token))
        return f"of {node}"

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
        events = self.platform.client.list("events")
        self.failovers = sum(
            each["reason"] == "RestartedElsewhere" and each["name"].startswith(f"vm-of-{self.seed}-") for each in events
        )

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
        self._agents_of_copies.remove()
        for folder in (*self._aside, *self._copies.values()):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self.platform.postgres.directory / "backup", ignore_errors=True)


def _switched(platform: Platform) -> SwitchedLab:
    assert isinstance(platform.lab, SwitchedLab)
    return platform.lab


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _month_ago_s() -> float:
    return time.time() - (pki.NODE_DAYS + 1) * 86_400.0


def _copy_owned(source: Path, target: Path) -> None:
    """Copy a folder with its owners."""
    shutil.copytree(source, target, copy_function=_copy_file)
    for path in (target, *target.rglob("*")):
        status = (source / path.relative_to(target)).stat()
        os.chown(path, status.st_uid, status.st_gid)


def _copy_file(source: str, target: str) -> str:
    return str(shutil.copy2(source, target))
