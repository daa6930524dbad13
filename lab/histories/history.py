"""One history: what is done is drawn from a seed; then everything comes to rest, and is looked at."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lab.histories import census, verdict
from lab.histories.operator import Operator
from lab.histories.watch import TwiceWatch
from lab.platform import Platform, Service, until
from lab.switched import SwitchedLab
from novacron.client import ApiError, Unreachable

VMS_AT_FIRST, VMS_MAX, ACTS = (2, 3), 5, (8, 14)
PAUSE_S_MAX = 1.2
REST_S_MAX, CLEAN_S_MAX, POLL_S = 150.0, 60.0, 0.3
NETWORK = "lan"
IMAGES = ("tiny", "tiny", "disk")
MEMORY_MIB = 64


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
        self._names = 0
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
        for _ in range(self.random.randint(*ACTS)):
            self._act()
            time.sleep(self.random.uniform(0, PAUSE_S_MAX))
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
        )  # fmt: skip
        act = self.random.choices([act for _, act in acts], [weight for weight, _ in acts])[0]
        said = act()
        at_s = time.monotonic() - self._began_s
        self.done.append(f"{at_s:.1f} {act.__name__.strip('_')} {said or ''}".rstrip())

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

    def _creates(self) -> str | None:
        if len(self.made) >= VMS_MAX:
            return "nothing: there are enough"
        self._names += 1
        name, image = f"vm-of-{self.seed}-{self._names}", self.random.choice(IMAGES)
        nics = [{"network": NETWORK}] if self.random.random() < 0.5 else []
        fields = {"name": name, "image": image, "memory_mib": MEMORY_MIB, "nics": nics}
        vm = self._ask(lambda: self.platform.client.create_vm(**fields))
        if vm is not None:
            self.made[vm["id"]] = name
        return f"{name} of {image}"

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
        node, again = self._a_node(), self.random.random() < 0.5
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
            _switched(self.platform).plug(host)
            self.platform.lab.mend_management(host, self.platform.ports)
        self._control_plane()
        for agent in self.platform.agents.values():
            if not agent.running:
                agent.start()

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

    def _lose_power(self, node: str) -> None:
        for process in census.processes(self.platform.directory):
            if process.host == node:
                _kill(process.pid)

    def _copies_folder(self) -> str:
        node = self._a_node()
        copy = self._copies.setdefault(node, self._state(node).with_name("agent-copy"))
        shutil.rmtree(copy, ignore_errors=True)
        with contextlib.suppress(OSError):  # what goes at this moment, sockets, and a folder that is not there
            shutil.copytree(self._state(node), copy, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
        return f"of {node}"

    def _moves_folder_away(self) -> str:
        node, off = self._a_node(), self.random.random() < 0.3
        self.folders_lost = True
        self.platform.agents[node].kill()
        if off:
            self._lose_power(node)
        self._put_aside(node)
        self._join(self.platform.agents[node], node)
        return f"of {node}" + (", which lost power" if off else "")

    def _removes_folder(self) -> str:
        node = self._a_node()
        self.folders_lost = True
        self.platform.agents[node].kill()
        shutil.rmtree(self._state(node), ignore_errors=True)
        self._join(self.platform.agents[node], node)
        return f"of {node}"

    def _puts_folder_back(self) -> str:
        node, off = self._a_node(), self.random.random() < 0.6
        copy = self._copies.pop(node, None)
        if copy is None or not copy.exists():
            return self._copies_folder()
        self.folders_lost = True
        self.platform.agents[node].kill()
        if off:
            self._lose_power(node)
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
        try:
            until(lambda: not census.left_over(directory, hosts), "nothing is left over", CLEAN_S_MAX)
        except AssertionError:
            raise AssertionError(f"ORPHAN: {census.left_over(directory, hosts)}") from None
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
