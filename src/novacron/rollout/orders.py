"""What operators order: a rollout begins, goes on, waits, goes back. Decides what may follow what, and who does it."""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable
from typing import NamedTuple

from novacron.rollout.agents.orders import check_no_agents
from novacron.rollout.balancer import HAProxy
from novacron.rollout.engine import RolloutEngine
from novacron.rollout.gates import Prometheus
from novacron.rollout.instances import Environments, Instances
from novacron.rollout.journal import OperatorAsk, OperatorRequest, RolloutJournal
from novacron.rollout.model import (
    AFTER_FAILURE,
    Colour,
    Rollout,
    RolloutError,
    RolloutState,
    Strategy,
    shares_of,
)
from novacron.rollout.options import VERSION, InstancesKind, RolloutOptions
from novacron.rollout.processes import ServerProcesses
from novacron.rollout.systemd import ServerUnits
from novacron.rollout.work import RolloutParts

HEARD_S_MAX = 30.0
"""How long it may take until the process that works has heard what it is asked."""
ENDED_S_MAX = 900.0
POLL_S = 0.2


class Orders(NamedTuple):
    """What can be ordered, with these settings. ``say`` prints a line. All raise RolloutError, OSError."""

    options: RolloutOptions
    say: Callable[[str], None]

    @property
    def journal(self) -> RolloutJournal:
        return RolloutJournal(self.options.state_dir)

    def start(self, strategy: Strategy, version: str) -> Rollout:
        """Begin a rollout and work on it until it has ended."""
        if not VERSION.match(version):
            raise RolloutError(f"version: {version!r} is no version; write it like 1.2.0")
        if strategy is Strategy.CANARY and self.options.prometheus is None:
            raise RolloutError("prometheus: a canary is judged by what Prometheus measures: name its URL")
        with self.journal.alone():
            last = self.journal.last()
            _check_begin(last, strategy)
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
            found = self._parts().instances.version(last.stable)
            if found != last.version_before:
                raise RolloutError(
                    f"{last.stable} has version {found or 'none'} instead of {last.version_before}: install that with"
                    f" novacron rollout start --strategy blue-green --version {last.version_before}"
                )
            return self._run(self._new(Strategy.ROLLBACK, last.version_before, last.stable, last.version))

    def _new(self, strategy: Strategy, version: str, colour: Colour, before: str) -> Rollout:
        last = self.journal.last()
        shares = shares_of(strategy, self.options.shares, self.options.step, self.options.watch)
        return Rollout(
            1 if last is None else last.number + 1, strategy, version, colour, shares, time.time(),
            version_before=before, by=getpass.getuser(),
        )  # fmt: skip

    def resume(self) -> Rollout:
        """Let a rollout go on: one that waits, or one whose process has ended."""
        journal = self.journal
        rollout = _open_rollout(journal)
        if journal.is_worked_on():
            if rollout.state is not RolloutState.PAUSED:
                raise RolloutError(f"rollout {rollout.number} is worked on already, and does not wait")
            return self._ask(rollout, OperatorAsk.RESUME, lambda now: now.state is not RolloutState.PAUSED, HEARD_S_MAX)
        with journal.alone():
            journal.answered()
            return self._run(_open_rollout(journal))

    def pause(self) -> Rollout:
        """Let a rollout wait where it is; what it watches is still watched."""
        rollout = _open_rollout(self.journal)
        if rollout.state is not RolloutState.RUNNING:
            raise RolloutError(f"rollout {rollout.number} is {rollout.state}: it can't wait")
        if not self.journal.is_worked_on():
            raise RolloutError(f"no process works on rollout {rollout.number}: it waits until novacron rollout resume")
        return self._ask(rollout, OperatorAsk.PAUSE, lambda now: now.state is not RolloutState.RUNNING, HEARD_S_MAX)

    def abort(self) -> Rollout:
        """Let a rollout go back, and wait until it has."""
        journal = self.journal
        rollout = journal.last()
        if rollout is None or (rollout.ended and rollout.state is not RolloutState.FAILED):
            raise RolloutError("there is no rollout to abort; back to the version before: novacron rollout rollback")
        if journal.is_worked_on():
            return self._ask(rollout, OperatorAsk.ABORT, lambda now: now.ended, ENDED_S_MAX)
        with journal.alone():
            return self._go_back(rollout)

    def accept(self) -> Rollout:
        """Take what serves after a rollout that failed for the installation's version."""
        with self.journal.alone():
            rollout = self.journal.last()
            if rollout is None or rollout.state is not RolloutState.FAILED:
                raise RolloutError("no rollout has failed, so there is nothing to accept: novacron rollout status")
            self.journal.answered()
            return RolloutEngine(self.journal, self._parts(), self.say).accept(rollout, getpass.getuser())

    def _go_back(self, rollout: Rollout) -> Rollout:
        """Go back in this process, which has the lock."""
        self.journal.answered()
        engine = RolloutEngine(self.journal, self._parts(), self.say)
        if rollout.state is not RolloutState.GOING_BACK:
            engine.turn(rollout, f"aborted by {getpass.getuser()}")
        return engine.run(rollout)

    def _ask(self, rollout: Rollout, ask: OperatorAsk, done: Callable[[Rollout], bool], limit_s: float) -> Rollout:
        """OperatorAsk the process that works, and wait until it has done so."""
        journal, deadline = self.journal, time.monotonic() + limit_s
        journal.ask(OperatorRequest(rollout.number, ask, getpass.getuser()))
        while not done(now := journal.get(rollout.number)):
            if time.monotonic() > deadline:
                raise RolloutError(
                    f"rollout {rollout.number} has not done so within {limit_s:.0f} s: it is in step {now.step}, which"
                    " it finishes first; see: novacron rollout status"
                )
            if not journal.is_worked_on() and not done(journal.get(rollout.number)):
                raise RolloutError(f"the process that worked on rollout {rollout.number} has ended: run this again")
            time.sleep(POLL_S)
        return now

    def _run(self, rollout: Rollout) -> Rollout:
        self.journal.answered()
        return RolloutEngine(self.journal, self._parts(), self.say).run(rollout)

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


def _check_begin(last: Rollout | None, strategy: Strategy) -> None:
    """Raise RolloutError if no such rollout can begin after the last one."""
    if last is not None and last.state is RolloutState.FAILED:
        raise RolloutError(f"rollout {last.number} to {last.version} has failed: {AFTER_FAILURE}")
    if last is not None and not last.ended:
        raise RolloutError(
            f"rollout {last.number} to {last.version} is {last.state}: let it go on with novacron rollout resume, or"
            " back with novacron rollout abort"
        )
    served = last is not None and bool(last.serving_version)
    if strategy is Strategy.BEGIN and served:
        raise RolloutError("a version serves already: novacron rollout start brings the next one")
    if strategy is not Strategy.BEGIN and not served:
        raise RolloutError("no version serves yet: novacron rollout begin --version VERSION starts the first one")


def _open_rollout(journal: RolloutJournal) -> Rollout:
    """Return the rollout that has not ended. Raises RolloutError."""
    rollout = journal.last()
    if rollout is None or rollout.ended:
        hint = f"; the last one has failed: {AFTER_FAILURE}" if rollout and rollout.state is RolloutState.FAILED else ""
        raise RolloutError(f"no rollout is under way{hint}")
    return rollout
