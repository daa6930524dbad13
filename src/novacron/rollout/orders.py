"""What operators order of rollouts of servers. Decides what may follow what, and who does it."""

from __future__ import annotations

import getpass
import time

from novacron.rollout.agents.orders import check_no_agents
from novacron.rollout.balancer import HAProxy
from novacron.rollout.engine import RolloutEngine
from novacron.rollout.gates import Prometheus
from novacron.rollout.instances import Environments, Instances
from novacron.rollout.journal import RolloutJournal
from novacron.rollout.model import (
    AFTER_FAILURE,
    Colour,
    Rollout,
    RolloutError,
    RolloutState,
    Strategy,
    shares_of,
)
from novacron.rollout.operator_orders import OperatorOrders, OrderLimits, OrderTexts
from novacron.rollout.options import InstancesKind, RolloutOptions
from novacron.rollout.processes import ServerProcesses
from novacron.rollout.systemd import ServerUnits
from novacron.rollout.work import RolloutParts

TEXTS = OrderTexts(
    kind="rollout",
    flag="",
    after_failure=AFTER_FAILURE,
    not_paused="does not wait",
    not_pausable="wait",
    nothing_to_abort="there is no rollout to abort; back to the version before: novacron rollout rollback",
    nothing_to_accept="no rollout has failed, so there is nothing to accept: novacron rollout status",
    process="the process that worked on",
)


class Orders(OperatorOrders[Rollout]):
    """What can be ordered of rollouts of servers."""

    texts, limits = TEXTS, OrderLimits(heard_s_max=30.0, ended_s_max=900.0)

    @property
    def journal(self) -> RolloutJournal:
        return RolloutJournal(self.options.state_dir)

    def start(self, strategy: Strategy, version: str) -> Rollout:
        """Begin a rollout and work on it until it has ended."""
        self._check_version(version)
        if strategy is Strategy.CANARY and self.options.prometheus is None:
            raise RolloutError("prometheus: a canary is judged by what Prometheus measures: name its URL")
        with self.journal.alone():
            last = self.journal.last()
            self._check_begin(last, strategy)
            check_no_agents(self.options)
            colour = Colour.BLUE if last is None else last.serving.other
            before = "" if last is None else last.serving_version
            rollout = self._new(strategy, version, colour, before)
            return self._run(rollout)

    def rollback(self) -> Rollout:
        """Go back to the version that served before the last rollout."""
        with self.journal.alone():
            last = self.journal.last()
            if last is not None and not last.ended:
                return self._go_back(last)
            if last is None or last.state is not RolloutState.DONE or not last.version_before:
                raise RolloutError("there is no version to go back to: novacron rollout history shows what was done")
            check_no_agents(self.options)
            installed = self._parts().instances.version(last.stable)
            if installed != last.version_before:
                raise RolloutError(
                    f"{last.stable} has version {installed or 'none'} instead of {last.version_before}: install that"
                    f" with novacron rollout start --strategy blue-green --version {last.version_before}"
                )
            return self._run(self._new(Strategy.ROLLBACK, last.version_before, last.stable, last.version))

    def _new(self, strategy: Strategy, version: str, colour: Colour, before: str) -> Rollout:
        last = self.journal.last()
        shares = shares_of(strategy, self.options.shares, self.options.step, self.options.watch)
        return Rollout(
            1 if last is None else last.number + 1, strategy, version, colour, shares, time.time(),
            version_before=before, by=getpass.getuser(),
        )  # fmt: skip

    def _check_begin(self, last: Rollout | None, strategy: Strategy) -> None:
        """Raise RolloutError if no such rollout can begin after the last one."""
        self._check_ended(last)
        served = last is not None and bool(last.serving_version)
        if strategy is Strategy.BEGIN and served:
            raise RolloutError("a version serves already: novacron rollout start brings the next one")
        if strategy is not Strategy.BEGIN and not served:
            raise RolloutError("no version serves yet: novacron rollout begin --version VERSION starts the first one")

    def _finishes_first(self, rollout: Rollout) -> str:
        return f"it is in step {rollout.step}, which it finishes first"

    def _engine(self) -> RolloutEngine:
        return RolloutEngine(self.journal, self._parts(), self.say)

    def _parts(self) -> RolloutParts:
        options = self.options
        prometheus = None
        if options.prometheus is not None:
            prometheus = Prometheus(options.prometheus, options.prometheus_ca, options.window)
        balancer = HAProxy(
            options.haproxy_config, options.haproxy_socket, options.haproxy_program, options.haproxy_wait
        )
        return RolloutParts(options, _instances(options), balancer, prometheus)


def _instances(options: RolloutOptions) -> Instances:
    environments = Environments(options.root, options.packages, options.environments())
    if options.instances is InstancesKind.SYSTEMD:
        return ServerUnits(environments)
    return ServerProcesses(environments, options.state_dir, options.server_settings_of)
