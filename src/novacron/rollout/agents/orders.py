"""What operators order of rollouts of agents. Decides what may follow what, and who does it."""

from __future__ import annotations

import getpass
import time
from collections import Counter
from collections.abc import Callable

from novacron.rollout.agents.engine import AgentEngine
from novacron.rollout.agents.fleet import RolloutFleet
from novacron.rollout.agents.gates import WaveLimits
from novacron.rollout.agents.hosts import SYSTEM_PACKAGE, ReachedHosts
from novacron.rollout.agents.journal import AgentJournal
from novacron.rollout.agents.model import AgentRollout, in_waves
from novacron.rollout.agents.node_work import AgentParts, NodeLimits
from novacron.rollout.agents.packages import PackageFiles
from novacron.rollout.agents.work import WaveSettings
from novacron.rollout.journal import RolloutJournal
from novacron.rollout.model import RolloutError, StepFailed
from novacron.rollout.notifications import Notifications
from novacron.rollout.operator_orders import OperatorOrders, OrderLimits, OrderTexts
from novacron.rollout.options import RolloutOptions

AFTER_FAILURE = (
    "novacron rollout abort --agents tries to go back again, novacron rollout accept --agents keeps what is there"
)
TEXTS = OrderTexts(
    kind="rollout of agents",
    flag=" --agents",
    after_failure=AFTER_FAILURE,
    not_paused="is not paused",
    not_pausable="be paused",
    nothing_to_abort="there is no rollout of agents to abort; another version: novacron rollout start --agents",
    nothing_to_accept="no rollout of agents has failed: novacron rollout status --agents",
    process="the process of",
)


class AgentOrders(OperatorOrders[AgentRollout]):
    """What can be ordered of rollouts of agents. ``connect`` opens the API."""

    texts, limits = TEXTS, OrderLimits(heard_s_max=60.0, ended_s_max=3600.0)

    def __init__(
        self, options: RolloutOptions, connect: Callable[[], RolloutFleet], say: Callable[[str], None]
    ) -> None:
        super().__init__(options, say)
        self.connect = connect

    @property
    def journal(self) -> AgentJournal:
        return AgentJournal(self.options.state_dir)

    def start(self, version: str) -> AgentRollout:
        """Begin a rollout to all nodes, or those that the settings name, and work on it until it has ended."""
        self._check_version(version)
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
        self._check_ended(last)
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
        names = self.options.agent_node
        if names is None:
            load = Counter(guest.node for guest in guests)
            names = sorted(known, key=lambda name: (load[name], name))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise RolloutError(f"agent-node: there is no node {unknown[0]}; see: novacron node list")
        if not names:
            raise RolloutError("there are no nodes; see: novacron node list")
        return list(dict.fromkeys(names))

    def _finishes_first(self, rollout: AgentRollout) -> str:
        return "it finishes the nodes that it has begun first"

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
        return AgentEngine(self.journal, parts, settings, Notifications(options), self.say)


def check_no_agents(options: RolloutOptions) -> None:
    """Raise RolloutError while a rollout of agents is under way: servers wait until it has ended."""
    last = AgentJournal(options.state_dir).last()
    if last is not None and not last.ended:
        raise RolloutError(f"{last.title} is {last.state}: servers follow once it has ended")
