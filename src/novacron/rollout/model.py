"""What a rollout is: its steps, states and records. Pure: no I/O, no clock."""

from __future__ import annotations

import itertools
from enum import StrEnum

import msgspec

EVENTS_MAX = 2000
"""Of one rollout: the oldest checks of a share make room for later ones."""
SHARE, WATCH = "share-", "watch-"
GOING_BACK_STEPS = ("restore", "verify", "remove")


class RolloutError(Exception):
    """A rollout can't be begun or go on as asked: says why, and what to do."""


class StepFailed(RolloutError):
    """A step of a rollout failed: says which, and what was found. The rollout goes back."""


class Strategy(StrEnum):
    """How traffic comes to a new version."""

    BLUE_GREEN = "blue-green"
    """All at once, then watched."""
    CANARY = "canary"
    """Share by share, each watched."""
    ROLLBACK = "rollback"
    """Back to the version before, which has been stopped."""
    BEGIN = "begin"
    """The first version behind the balancer: there is nothing to go back to."""


class Colour(StrEnum):
    """One of the two places that a server has on a host."""

    BLUE = "blue"
    GREEN = "green"

    @property
    def other(self) -> Colour:
        return Colour.GREEN if self is Colour.BLUE else Colour.BLUE


class RolloutState(StrEnum):
    """Where a rollout stands."""

    RUNNING = "running"
    PAUSED = "paused"
    GOING_BACK = "going-back"
    DONE = "done"
    ROLLED_BACK = "rolled-back"
    FAILED = "failed"
    """It could neither go on nor go back: somebody has to look."""


AFTER_FAILURE = "novacron rollout abort tries to go back again, novacron rollout accept keeps what serves"
WAY_BACK = frozenset({RolloutState.GOING_BACK, RolloutState.ROLLED_BACK, RolloutState.FAILED})
ENDED = frozenset({RolloutState.DONE, RolloutState.ROLLED_BACK, RolloutState.FAILED})
NEXT_STATES = {
    RolloutState.RUNNING: {RolloutState.PAUSED, RolloutState.GOING_BACK, RolloutState.DONE},
    RolloutState.PAUSED: {RolloutState.RUNNING, RolloutState.GOING_BACK},
    RolloutState.GOING_BACK: {RolloutState.ROLLED_BACK, RolloutState.FAILED},
    RolloutState.DONE: set(),
    RolloutState.ROLLED_BACK: set(),
    RolloutState.FAILED: {RolloutState.GOING_BACK, RolloutState.DONE, RolloutState.ROLLED_BACK},
}
"""From a failed one, somebody who has looked may try to go back again, or accept what serves."""


class Share(msgspec.Struct, frozen=True):
    """A share of the requests for the new version, and for how long it is watched."""

    percent: int
    watch_s: float


class RolloutEvent(msgspec.Struct, frozen=True):
    """Something that happened: when (seconds since 1970), in which step, and what."""

    at_s: float
    step: str
    text: str


class RolloutRecord:
    """What the records of all rollouts have in common, of servers and of agents. Each has these as fields of its own,
    in the order in which its journal has them."""

    __slots__ = tuple[str, ...]()  # each record has slots for its fields
    number: int
    version: str
    began_s: float
    by: str
    state: RolloutState
    step: str
    step_began_s: float
    watched_s: float
    reason: str
    """Why it goes back, or failed."""
    went_back_s: float
    ended_s: float
    events: list[RolloutEvent]

    @property
    def title(self) -> str:
        """Return what messages call it."""
        return f"rollout {self.number}"

    @property
    def strategy(self) -> str:
        raise NotImplementedError

    @property
    def version_before(self) -> str:
        raise NotImplementedError

    @property
    def steps(self) -> tuple[str, ...]:
        """Return its steps in order; those of going back if it goes back."""
        raise NotImplementedError

    @property
    def next_step(self) -> str | None:
        """Return the step after the present one; None: that was the last."""
        position = self.steps.index(self.step) + 1 if self.step in self.steps else 0
        return self.steps[position] if position < len(self.steps) else None

    @property
    def goes_back(self) -> bool:
        """Return whether it goes back, or has tried to."""
        return self.state in WAY_BACK

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def become(self, state: RolloutState) -> None:
        """Take another state. Raises RolloutError if that one can't follow."""
        if state not in NEXT_STATES[self.state]:
            raise RolloutError(f"{self.title} is {self.state}: it can't become {state}")
        self.state = state

    def note(self, now_s: float, text: str) -> None:
        """Add to what has happened."""
        self.events.append(RolloutEvent(now_s, self.step, text))
        del self.events[:-EVENTS_MAX]


class Rollout(RolloutRecord, msgspec.Struct):
    """A rollout of a server, as its journal has it."""

    number: int
    strategy: Strategy
    version: str
    colour: Colour
    """Where the new version runs."""
    shares: list[Share]
    began_s: float
    version_before: str = ""
    by: str = ""
    state: RolloutState = RolloutState.RUNNING
    step: str = ""
    step_began_s: float = 0.0
    watched_s: float = 0.0
    """How long the present share has been watched."""
    reason: str = ""
    """Why it goes back, or failed."""
    went_back_s: float = 0.0
    """From the decision to go back until the old version had all requests, and was ready."""
    ended_s: float = 0.0
    events: list[RolloutEvent] = []

    @property
    def stable(self) -> Colour:
        """Return where the version before runs."""
        return self.colour.other

    @property
    def serving(self) -> Colour:
        """Return which of the two has all requests at its end; after a failure, nobody knows."""
        return self.colour if self.state is RolloutState.DONE else self.stable

    @property
    def serving_version(self) -> str:
        return self.version if self.state is RolloutState.DONE else self.version_before

    @property
    def steps(self) -> tuple[str, ...]:
        if self.goes_back:
            return GOING_BACK_STEPS
        shares: list[str] = []
        for share in self.shares:
            shares.append(f"{SHARE}{share.percent}")
            if share.watch_s > 0:
                shares.append(f"{WATCH}{share.percent}")
        last = () if self.strategy is Strategy.BEGIN else ("drain", "stop")
        first = ("start", "health") if self.strategy is Strategy.ROLLBACK else ("install", "start", "health", "smoke")
        return (*first, *shares, *last)


def share_of(rollout: Rollout, step: str) -> Share:
    """Return the share that a step is about."""
    percent = int(step.rpartition("-")[2])
    return next(share for share in rollout.shares if share.percent == percent)


def shares_of(strategy: Strategy, text: str, step_s: float, watch_s: float) -> list[Share]:
    """Return the shares of a strategy; ``text`` names those of a canary, as ``1,10,50,100``. Raises RolloutError."""
    if strategy is not Strategy.CANARY:
        return [Share(100, watch_s if strategy is Strategy.BLUE_GREEN else 0.0)]
    try:
        percents = [int(part) for part in text.split(",")]
    except ValueError:
        percents = []
    rising = all(percent < following for percent, following in itertools.pairwise(percents))
    if not percents or percents[0] < 1 or percents[-1] != 100 or not rising:
        raise RolloutError(f"shares: {text!r} are no rising percentages that end with 100; write it like 1,10,50,100")
    return [Share(percent, step_s) for percent in percents]
