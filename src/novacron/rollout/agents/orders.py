"""What operators order of rollouts of agents. Decides what may follow what, and who does it."""

from __future__ import annotations

import getpass
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from novacron.rollout.agents.engine import AgentEngine
from novacron.rollout.agents.fleet import RolloutFleet
from novacron.rollout.agents.gates import WaveLimits
from novacron.rollout.agents.hosts import SYSTEM_PACKAGE, ReachedHosts
from novacron.rollout.agents.journal import AgentJournal
from novacron.rollout.agents.model import AgentRollout, in_waves
from novacron.rollout.agents.node_work import AgentParts, NodeLimits
from novacron.rollout.agents.packages import PackageFiles
from novacron.rollout.agents.work import WaveSettings
from novacron.rollout.journal import OperatorAsk, OperatorRequest, RolloutJournal
from novacron.rollout.model import RolloutError, RolloutState, StepFailed
from novacron.rollout.options import VERSION, RolloutOptions
from novacron.rollout.telling import Telling

HEARD_S_MAX, ENDED_S_MAX, POLL_S = 60.0, 3600.0, 0.2
AFTER = "novacron rollout abort --agents tries to go back again, novacron rollout accept --agents keeps what is there"


class AgentOrders(NamedTuple):
    """What can be ordered, with these settings. ``connect`` opens the API; ``say`` prints a line. All raise
    RolloutError, OSError."""

    options: RolloutOptions
    connect: Callable[[], RolloutFleet]
    say: Callable[[str], None]

    @property
    def journal(self) -> AgentJournal:
        return AgentJournal(self.options.state_dir)

    def start(self, version: str) -> AgentRollout:
        """Begin a rollout to all nodes, or those that the settings name, and work on it until it has ended."""
        if not VERSION.match(version):
            raise RolloutError(f"version: {version!r} is no version; write it like 1.2.0")
        self._check_host_work()
        self._engine()  # before anything is written down
        with self.journal.alone():
            # Servers' rollouts look for one of agents under the same lock: never are two under way.
            with RolloutJournal(self.options.state_dir).alone():
                rollout = self._new(version)
                self.journal.save(rollout)
            return self._run(rollout)

    def _check_host_work(self) -> None:
        options = self.options
        if (options.restart_hosts or options.upgrade_system) and not options.drain_nodes:
            raise RolloutError("drain-nodes: VMs have to leave a host that is upgraded or restarted: add --drain-nodes")
        for name in options.upgrade_system or ():
            if not SYSTEM_PACKAGE.match(name):
                raise RolloutError(f"upgrade-system: {name!r} is no package of Debian")

    def _new(self, version: str) -> AgentRollout:
        servers, last = RolloutJournal(self.options.state_dir).last(), self.journal.last()
        if servers is not None and not servers.ended:
            raise RolloutError(
                f"rollout {servers.number} of servers is {servers.state}; agents follow when it has ended"
            )
        if last is not None and last.state is RolloutState.FAILED:
            raise RolloutError(f"rollout {last.number} of agents to {last.version} has failed: {AFTER}")
        if last is not None and not last.ended:
            raise RolloutError(
                f"rollout {last.number} of agents to {last.version} is {last.state}: let it go on with novacron rollout"
                " resume --agents, or back with novacron rollout abort --agents"
            )
        options = self.options
        return AgentRollout(
            1 if last is None else last.number + 1, version, in_waves(self._names(), options.waves), time.time(),
            options.wave_watch, getpass.getuser(), options.drain_nodes, options.restart_hosts,
            tuple(options.upgrade_system or ()),
        )  # fmt: skip

    def _names(self) -> list[str]:
        """Return the nodes that are meant, in their order: as they are named, or those with the fewest VMs first."""
        try:
            fleet = self.connect()
            known, guests = fleet.nodes(), fleet.guests().values()
        except StepFailed as error:
            raise RolloutError(str(error)) from None
        wanted = self.options.agent_node
        if wanted is None:
            load = Counter(guest.node for guest in guests)
            wanted = sorted(known, key=lambda name: (load[name], name))
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise RolloutError(f"agent-node: there is no node {unknown[0]}; see: novacron node list")
        if not wanted:
            raise RolloutError("there are no nodes; see: novacron node list")
        return list(dict.fromkeys(wanted))

    def resume(self) -> AgentRollout:
        """Let a rollout go on: one that is paused, or one whose process has ended."""
        journal = self.journal
        rollout = self._open()
        if journal.is_worked_on():
            if rollout.state is not RolloutState.PAUSED:
                raise RolloutError(f"rollout {rollout.number} of agents is worked on already, and is not paused")
            return self._ask(rollout, OperatorAsk.RESUME, lambda now: now.state is not RolloutState.PAUSED, HEARD_S_MAX)
        with journal.alone():
            return self._run(self._open())

    def pause(self) -> AgentRollout:
        """Begin no further node; what is watched is still watched."""
        rollout = self._open()
        if rollout.state is not RolloutState.RUNNING:
            raise RolloutError(f"rollout {rollout.number} of agents is {rollout.state}: it can't be paused")
        if not self.journal.is_worked_on():
            raise RolloutError(
                f"no process works on rollout {rollout.number} of agents: it waits until novacron rollout resume"
                " --agents"
            )
        return self._ask(rollout, OperatorAsk.PAUSE, lambda now: now.state is not RolloutState.RUNNING, HEARD_S_MAX)

    def abort(self) -> AgentRollout:
        """Bring the nodes of a rollout back to their versions, and wait until they are."""
        journal, rollout = self.journal, self.journal.last()
        if rollout is None or (rollout.ended and rollout.state is not RolloutState.FAILED):
            raise RolloutError(
                "there is no rollout of agents to abort; another version: novacron rollout start --agents"
            )
        if journal.is_worked_on():
            return self._ask(rollout, OperatorAsk.ABORT, lambda now: now.ended, ENDED_S_MAX)
        with journal.alone():
            journal.answered()
            engine = self._engine()
            if rollout.state is not RolloutState.GOING_BACK:
                engine.turn(rollout, f"aborted by {getpass.getuser()}")
            return engine.run(rollout)

    def accept(self) -> AgentRollout:
        """End a rollout that failed, with each node as it is."""
        with self.journal.alone():
            rollout = self.journal.last()
            if rollout is None or rollout.state is not RolloutState.FAILED:
                raise RolloutError("no rollout of agents has failed: novacron rollout status --agents")
            self.journal.answered()
            return self._engine().accept(rollout, getpass.getuser())

    def _open(self) -> AgentRollout:
        """Return the rollout that has not ended. Raises RolloutError."""
        rollout = self.journal.last()
        if rollout is None or rollout.ended:
            hint = f"; the last one has failed: {AFTER}" if rollout and rollout.state is RolloutState.FAILED else ""
            raise RolloutError(f"no rollout of agents is under way{hint}")
        return rollout

    def _ask(
        self, rollout: AgentRollout, ask: OperatorAsk, done: Callable[[AgentRollout], bool], limit_s: float
    ) -> AgentRollout:
        """Ask the process that works, and wait until it has done so."""
        journal, deadline = self.journal, time.monotonic() + limit_s
        journal.ask(OperatorRequest(rollout.number, ask, getpass.getuser()))
        while not done(now := journal.get(rollout.number)):
            if time.monotonic() > deadline:
                raise RolloutError(
                    f"rollout {rollout.number} of agents has not done so within {limit_s:.0f} s: it finishes the nodes"
                    " that it has begun first; see: novacron rollout status --agents"
                )
            if not journal.is_worked_on() and not done(journal.get(rollout.number)):
                raise RolloutError(f"the process of rollout {rollout.number} of agents has ended: run this again")
            time.sleep(POLL_S)
        return now

    def _run(self, rollout: AgentRollout) -> AgentRollout:
        self.journal.answered()
        return self._engine().run(rollout)

    def _engine(self) -> AgentEngine:
        options = self.options
        settings = WaveSettings(
            options.nodes_at_once, options.check_every,
            WaveLimits(options.failed_nodes_max, options.failed_actions_max, options.silent),
            NodeLimits(options.agent_back, options.host_back, options.drain_limit),
        )  # fmt: skip
        hosts = ReachedHosts(options.reach, options.install_limit)
        if options.packages is None:
            raise RolloutError("packages: say in which directory the packages are: --packages DIRECTORY")
        parts = AgentParts(self.connect(), hosts, PackageFiles(options.packages))
        return AgentEngine(self.journal, parts, settings, Telling(options), self.say)


def check_no_agents(options: RolloutOptions) -> None:
    """Raise RolloutError while a rollout of agents is under way: servers wait until it has ended."""
    last = AgentJournal(options.state_dir).last()
    if last is not None and not last.ended:
        raise RolloutError(f"rollout {last.number} of agents is {last.state}: servers follow once it has ended")
