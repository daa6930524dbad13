"""For how long a node may run highly available VMs without a word from the control plane: the rule, as pure code.

A node's lease ends ``LEASE_S`` after it sent the last heartbeat that was acknowledged; then its highly available VMs
are killed by what started them, and only later may the control plane start them elsewhere. A control plane that is
away must stop no VM, so a node that hears nothing may go on while a strict majority of the voters say that they hear
nothing either; and the control plane starts nothing elsewhere unless at least half of the voters have heard from it
all the while. Of two such groups one member is in both, and says one thing. See docs/adr/0023-leases-and-votes.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from novacron.model import limits

SILENT_AFTER_S = 8.0
"""A node whose last acknowledged heartbeat was sent longer ago than this says that it hears nothing."""
LEASE_S = 14.0
POLL_S = 1.5
"""How often a node that hears nothing asks the voters."""
ANSWER_S_MAX = 2.0
"""How long they have to answer."""
VOTE_S = 7.0
"""From when it began to ask, a majority's word is good for so long: until the next one is sure to have come."""
MARGIN_S = 2.0
"""A VM is killed this soon after the lease's end, at the latest."""
STEADY_S = VOTE_S + MARGIN_S + 1.0
"""Voters count for the control plane once they have heard from it for so long."""
VOTERS_MAX = 15


class Vitals(msgspec.Struct, frozen=True):
    """What a node says to another one that asks."""

    silent: bool
    """It hears nothing from the control plane."""


class Sign(StrEnum):
    """What a node's silence means."""

    DEAD = "dead"
    """Nobody hears it."""
    ISOLATED = "isolated"
    """Other nodes hear it, and it hears nothing from the control plane: its VMs end with its lease."""
    PARTITIONED = "partitioned"
    """Other nodes hear it, and it has heard from the control plane: what it says is lost on the way."""


def majority_is_silent(silent: Iterable[str], voters: Iterable[str]) -> bool:
    """Say whether a node may go on without the control plane: ``silent`` are those that say they hear nothing."""
    asked = set(voters)
    return 2 * len(asked & set(silent)) > len(asked)


def may_take_over(steady: Iterable[str], voters: Iterable[str]) -> bool:
    """Say whether the control plane may start a node's VMs elsewhere, once its lease is over."""
    asked = set(voters)
    return 2 * len(asked & set(steady)) >= len(asked)


class Lease:
    """A node's own view. Times are in seconds of one clock, which runs on while the host sleeps."""

    def __init__(self, now: float, deadline: float = 0.0, heard_at: float | None = None) -> None:
        """Begin, or go on with what an earlier agent wrote down. One that knows nothing has heard just now: it must
        not say the contrary before that is true."""
        self.deadline = deadline
        self.heard_at = now if heard_at is None else heard_at
        self.voters: tuple[str, ...] = ()
        """Those that count: the control plane knows that we count these."""
        self.voters_next: tuple[str, ...] = ()
        """Those that will count once it knows; until then, they count as well."""
        self._steady_since: float | None = None
        self._number = self.acknowledged = 0
        self._sent: dict[int, tuple[float, tuple[str, ...]]] = {}

    def silent(self, now: float) -> bool:
        return now - self.heard_at > SILENT_AFTER_S

    def valid(self, now: float) -> bool:
        return now < self.deadline

    def steady_s(self, now: float) -> float:
        """Return for how long it has heard from the control plane without a pause."""
        return 0.0 if self._steady_since is None or self.silent(now) else now - self._steady_since

    def connected(self) -> None:
        """A new connection counts its heartbeats anew."""
        self._number = self.acknowledged = 0
        self._sent.clear()

    def beat(self, now: float) -> int:
        """Return the number of a heartbeat that is sent now."""
        self._number += 1
        self._sent[self._number] = now, self.voters_next
        for number in [number for number in self._sent if number <= self._number - limits.BEATS_REMEMBERED]:
            del self._sent[number]
        return self._number

    def beaten(self, number: int, now: float) -> None:
        """The control plane has acknowledged a heartbeat."""
        sent = self._sent.get(number)
        if sent is None:
            return
        sent_at, voters = sent
        if self.silent(now) or self._steady_since is None:
            self._steady_since = now
        self.acknowledged = max(self.acknowledged, number)
        self.heard_at = max(self.heard_at, sent_at)
        self.deadline = max(self.deadline, sent_at + LEASE_S)
        self.voters = voters

    def may_go_on(self, silent: set[str], asked_at: float, now: float) -> bool:
        """Go on without the control plane if the voters allow it, and say so. A lease that is over stays over."""
        both = [voters for voters in (self.voters, self.voters_next) if voters]
        if not both or not self.valid(now) or not all(majority_is_silent(silent, voters) for voters in both):
            return False
        self.deadline = max(self.deadline, asked_at + VOTE_S)
        return True


class Beats:
    """What the control plane knows of one connection's heartbeats. Times are in seconds of its own clock."""

    def __init__(self) -> None:
        self._acknowledged: dict[int, tuple[float, int]] = {}

    def acknowledge(self, number: int, acknowledged: int, now: float) -> None:
        """A heartbeat is acknowledged now; it said which one's acknowledgement its sender had last."""
        self._acknowledged[number] = now, acknowledged
        for old in [old for old in self._acknowledged if old <= number - limits.BEATS_REMEMBERED]:
            del self._acknowledged[old]

    def hears_until(self, acknowledged: int) -> float | None:
        """Return until when a node surely does not say that it is silent, given the last number of which it has the
        acknowledgement; None if nothing is known.

        It hears for ``SILENT_AFTER_S`` from when it sent that heartbeat, which was after it had the acknowledgement
        that it named in it.
        """
        _, before = self._acknowledged.get(acknowledged, (0.0, 0))
        previous = self._acknowledged.get(before)
        return None if previous is None else previous[0] + SILENT_AFTER_S


CLOCK_SKEW_MIN_S = 0.5
"""What a message may be on its way for: less says nothing about clocks."""
CLOCK_SAMPLES = 5


class ClockSkew:
    """By how many seconds a node's clock is ahead, as it was stored last.

    A message that was long on its way, or waited here, makes a clock look late: of the last few, the one that was
    quickest counts, which is the clock filter of NTP (RFC 5905, section 10) for one direction.
    """

    def __init__(self, stored_s: float) -> None:
        self.stored_s = stored_s
        self._heard: deque[float] = deque(maxlen=CLOCK_SAMPLES)

    def differs(self, said: float, now: float) -> float | None:
        """Take what the node's clock said (0: it was not told) when it was ``now`` here; return the skew in seconds
        if it is another than the stored one, or None. 0 is that of a clock that may be right."""
        if not said:
            return None
        self._heard.append(said - now)
        if len(self._heard) < CLOCK_SAMPLES:
            return None
        skew_s = round(max(self._heard), 1)
        if abs(skew_s) < CLOCK_SKEW_MIN_S:
            skew_s = 0.0
        return skew_s if abs(skew_s - self.stored_s) >= CLOCK_SKEW_MIN_S else None
