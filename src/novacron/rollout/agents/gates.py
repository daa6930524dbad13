"""Whether a wave may stay: what is compared before and after, and what ends a rollout of agents. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

NAMED_MAX = 5
"""Nodes, VMs or actions that a reason names."""
RUNS = frozenset({"running", "paused"})
ENDED = frozenset({"stopped", "failed", "absent"})
"""States without a guest. In others its node is at work, or does not know."""


class WaveLimits(NamedTuple):
    """How much of each may go wrong in a wave."""

    failed_nodes_max: int = 0
    failed_actions_max: int = 0
    silent_s_max: float = 30.0
    """For how long a node of a wave may be not ready once its agent had come back."""


class NodeSeen(NamedTuple):
    """What the API says of a node."""

    ready: bool
    agent_version: str
    reason: str = ""
    cordoned: bool = False


class GuestSeen(msgspec.Struct, frozen=True, array_like=True):
    """What the API says of a VM."""

    name: str
    node: str
    crashes: int
    state: str
    should_run: bool = True
    """Its user wants it to run, and its guest has not powered itself off."""
    starts: int = 0
    """How often its user has started it."""
    pid: int = 0
    """Of its QEMU; 0: none is known."""
    epoch: int = 0
    """Every move begins another one: a VM that has come back to its node has another QEMU."""

    def began_anew(self, before: GuestSeen) -> bool:
        """Say whether its QEMU is another one than before, though it has neither moved nor been started."""
        is_another = self.pid != before.pid and 0 not in (self.pid, before.pid)
        return is_another and (self.node, self.epoch, self.starts) == (before.node, before.epoch, before.starts)


class ActionFailed(NamedTuple):
    """An event that says that something failed."""

    object: str
    name: str
    reason: str
    message: str


class WaveBaseline(msgspec.Struct, frozen=True):
    """What was so before a wave: its nodes' VMs that ran, by id, and the newest event."""

    number: int
    wave: int
    event: int
    guests: dict[str, GuestSeen]


def stopped(before: Mapping[str, GuestSeen], now: Mapping[str, GuestSeen], *, last: bool) -> list[str]:
    """Return what became of guests that ran before and should run now. Those that were deleted do not count.

    At the ``last`` look at a wave, a guest of which nobody knows whether it runs counts as one that does not.
    """
    causes = []
    for vm, was in before.items():
        guest = now.get(vm)
        if guest is None or was.state not in RUNS:
            continue
        if guest.crashes > was.crashes:
            causes.append(f"VM {was.name} on {was.node} crashed")
        elif guest.began_anew(was):
            causes.append(f"VM {was.name} on {was.node} ended, and was started again")
        elif guest.should_run and (guest.state in ENDED or (last and guest.state not in RUNS)):
            causes.append(f"VM {was.name} on {was.node} does not run any more: it is {guest.state}")
    return causes


def failed_actions(failures: Iterable[ActionFailed], nodes: Iterable[str], guests: Iterable[str]) -> list[str]:
    """Return the failures that are about these nodes, or about VMs on them."""
    concerned = {*nodes, *guests}
    return [
        f"{failure.reason} of {failure.name}: {failure.message}"
        for failure in failures
        if failure.object in concerned or failure.name in concerned
    ]


def silent(since: Mapping[str, float], now_s: float, limits: WaveLimits) -> list[str]:
    """Return the nodes that have not been ready for too long; ``since`` says from when on."""
    return [
        f"node {name} has not been heard for {now_s - begun:.0f} s"
        for name, begun in sorted(since.items())
        if now_s - begun > limits.silent_s_max
    ]


def refusals(silent_nodes: list[str], stopped_guests: list[str], failures: list[str], limits: WaveLimits) -> str:
    """Return why a wave has to go back; empty: it may stay."""
    return "; ".join(_reasons(silent_nodes, stopped_guests, failures, limits))


def _reasons(
    silent_nodes: list[str], stopped_guests: list[str], failures: list[str], limits: WaveLimits
) -> Iterator[str]:
    if silent_nodes:
        yield few(silent_nodes)
    if stopped_guests:
        yield few(stopped_guests)
    if len(failures) > limits.failed_actions_max:
        yield few(failures)


def few(texts: list[str]) -> str:
    """Return the first of these texts, and how many more there are."""
    more = len(texts) - NAMED_MAX
    return ", ".join(texts[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
