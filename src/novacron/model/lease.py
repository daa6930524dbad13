"""How long a node may run highly available VMs without hearing from the control plane: the rule, as pure code.

A node's lease expires ``LEASE_S`` after the node sent the last heartbeat that was acknowledged. The process that
started its highly available VMs then kills them, and only later may the control plane start them elsewhere. An outage
of the control plane must stop no VM. So a node that hears nothing may go on while a strict majority of the voters say
that they hear nothing either, and the control plane starts nothing elsewhere unless at least half of the voters have
heard from it all the time. Any two such groups share a voter, which can't say both. See
docs/adr/0023-leases-and-votes.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from novacron.model import limits

SILENT_AFTER_S = 8.0
"""A node says that it hears nothing when it sent its last acknowledged heartbeat longer ago than this."""
LEASE_S = 14.0
POLL_S = 1.5
"""How often a node that hears nothing asks the voters."""
ANSWER_S_MAX = 2.0
"""How long voters have to answer."""
VOTE_S = 7.0
"""How long a majority's vote counts, from when the node began to ask: until the next vote has surely arrived."""
MARGIN_S = 2.0
"""How long after the lease expires a VM may still run, at most."""
STEADY_S = VOTE_S + MARGIN_S + 1.0
"""How long a voter must have heard from the control plane without a pause to count for it."""
VOTERS_MAX = 15
VOTER_GROUPS_MAX = 8
"""Groups of voters of which a node does not know which the control plane has: it takes no further one."""


class Vitals(msgspec.Struct, frozen=True):
    """A node's answer to another node that polls it."""

    silent: bool
    """The node hears nothing from the control plane."""


class Sign(StrEnum):
    """Why the control plane does not hear from a node."""

    DEAD = "dead"
    """No other node hears it either."""
    ISOLATED = "isolated"
    """Other nodes hear it, but it does not hear the control plane: its VMs stop when its lease expires."""
    PARTITIONED = "partitioned"
    """Other nodes hear it, and it hears the control plane: only its own messages are lost."""


def majority_is_silent(silent: Iterable[str], voters: Iterable[str]) -> bool:
    """Say whether a node may go on without the control plane. ``silent``: voters that say they hear nothing."""
    asked = set(voters)
    return 2 * len(asked & set(silent)) > len(asked)


def may_take_over(steady: Iterable[str], voters: Iterable[str]) -> bool:
    """Say whether the control plane may start a node's VMs elsewhere after its lease has expired.

    ``steady``: voters that have heard from the control plane for ``STEADY_S``.
    """
    asked = set(voters)
    return 2 * len(asked & set(steady)) >= len(asked)


class Lease:
    """A node's view of its own lease. Times are in seconds of one clock, which goes on while the host is suspended."""

    def __init__(self, now: float, deadline: float = 0.0, heard_at: float | None = None) -> None:
        """Begin, or resume from the record of an earlier agent. Without a record, count the control plane as heard just
        now: the node must not claim silence before it is true."""
        self.deadline = deadline
        self.heard_at = now if heard_at is None else heard_at
        self.voters: tuple[str, ...] | None = None
        """The voters of the last heartbeat that was acknowledged; None: none was."""
        self.voters_sent: tuple[tuple[str, ...], ...] = ()
        """Those of heartbeats that were not: the control plane may know of any of these groups instead."""
        self.voters_next: tuple[str, ...] = ()
        """The voters that replace them once the control plane knows; until then, all groups must agree."""
        self._steady_since: float | None = None
        self._number = self.acknowledged = 0
        self._sent: dict[int, tuple[float, tuple[str, ...]]] = {}

    def voters_known(self) -> tuple[tuple[str, ...], ...]:
        """Return the groups of voters of which the control plane knows one."""
        acknowledged = () if self.voters is None else (self.voters,)
        return tuple(dict.fromkeys((*acknowledged, *self.voters_sent)))

    def silent(self, now: float) -> bool:
        return now - self.heard_at > SILENT_AFTER_S

    def valid(self, now: float) -> bool:
        return now < self.deadline

    def steady_s(self, now: float) -> float:
        """Return for how long the node has heard from the control plane without a pause."""
        return 0.0 if self._steady_since is None or self.silent(now) else now - self._steady_since

    def connected(self) -> None:
        """Start counting heartbeats again, for a new connection."""
        self._number = self.acknowledged = 0
        self._sent.clear()

    def beat(self, now: float) -> int:
        """Record a heartbeat that is sent now, and return its number."""
        self._number += 1
        self._sent[self._number] = now, self.voters_next
        self.voters_sent = tuple(dict.fromkeys((*self.voters_sent, self.voters_next)))
        for number in [number for number in self._sent if number <= self._number - limits.BEATS_REMEMBERED]:
            del self._sent[number]
        return self._number

    def beaten(self, number: int, now: float) -> None:
        """Record that the control plane has acknowledged a heartbeat: it extends the lease."""
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
        later = [sent_voters for later, (_, sent_voters) in self._sent.items() if later > number]
        self.voters_sent = tuple(dict.fromkeys(later))

    def may_go_on(self, silent: set[str], asked_at: float, now: float) -> bool:
        """Extend the lease if the voters allow it, and say whether they do. An expired lease stays expired."""
        groups = (*self.voters_known(), self.voters_next)  # a group of none has no majority
        if not self.valid(now) or not all(majority_is_silent(silent, voters) for voters in groups):
            return False
        self.deadline = max(self.deadline, asked_at + VOTE_S)
        return True


class Beats:
    """The control plane's record of one connection's heartbeats. Times are in seconds of its own clock."""

    def __init__(self) -> None:
        self._acknowledged: dict[int, tuple[float, int]] = {}

    def acknowledge(self, number: int, acknowledged: int, now: float) -> None:
        """Record that a heartbeat is acknowledged now.

        ``acknowledged``: the latest heartbeat whose acknowledgement its sender had received.
        """
        self._acknowledged[number] = now, acknowledged
        for old in [old for old in self._acknowledged if old <= number - limits.BEATS_REMEMBERED]:
            del self._acknowledged[old]

    def hears_until(self, acknowledged: int) -> float | None:
        """Return the time until which a node certainly does not claim silence; None if nothing is known.

        ``acknowledged``: the latest heartbeat whose acknowledgement the node has received. It does not claim silence
        for ``SILENT_AFTER_S`` from when it sent that heartbeat, and it sent it after it had received the
        acknowledgement that the heartbeat names.
        """
        _, before = self._acknowledged.get(acknowledged, (0.0, 0))
        previous = self._acknowledged.get(before)
        return None if previous is None else previous[0] + SILENT_AFTER_S


CLOCK_SKEW_MIN_S = 0.5
"""A message may take this long to arrive, so a smaller difference says nothing about clocks."""
CLOCK_SAMPLES = 5


class ClockSkew:
    """How many seconds a node's clock is ahead of this one. ``stored_s``: the value stored last.

    A message that was delayed makes the sender's clock look slow, so only the fastest of the last few messages counts:
    NTP's clock filter (RFC 5905, section 10) for one direction.
    """

    def __init__(self, stored_s: float) -> None:
        self.stored_s = stored_s
        self._heard: deque[float] = deque(maxlen=CLOCK_SAMPLES)

    def differs(self, said: float, now: float) -> float | None:
        """Take a sample: the node's clock showed ``said`` (0: unknown) when the clock here showed ``now``.

        Return the skew in seconds if it differs from the stored one, else None. 0 means that the clock may be right.
        """
        if not said:
            return None
        self._heard.append(said - now)
        if len(self._heard) < CLOCK_SAMPLES:
            return None
        skew_s = round(max(self._heard), 1)
        if abs(skew_s) < CLOCK_SKEW_MIN_S:
            skew_s = 0.0
        return skew_s if abs(skew_s - self.stored_s) >= CLOCK_SKEW_MIN_S else None
