"""What the API says of nodes, guests and failures during a rollout of agents; drains. Used by several threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from novacron.client import ApiError, Client, Unreachable
from novacron.client.protocol import Object
from novacron.rollout.agents.gates import ActionFailed, GuestSeen, NodeSeen
from novacron.rollout.model import StepFailed

FRESH_S = 1.0
"""Nodes are listed no more often than this."""
EVENTS_MAX = 5000
AWAY_S_MAX, RETRY_S = 120.0, 1.0
"""A server may be away for this long: it may itself be replaced."""
TOO_MANY_REQUESTS = 429
FAILED = "Failed"
"""Ends the reasons of events that say that an action failed."""
DRAIN_ENDED = frozenset({"drained", "ended", "failed", "returned"})

T = TypeVar("T")


class RolloutFleet(Protocol):
    """What a rollout asks of an installation. All raise StepFailed, also when nobody answers for long."""

    def nodes(self) -> dict[str, NodeSeen]:
        """Return all nodes by name."""

    def guests(self) -> dict[str, GuestSeen]:
        """Return all VMs by id."""

    def newest_event(self) -> int:
        """Return the id of the newest event; 0: there is none."""

    def failures_since(self, event: int) -> list[ActionFailed]:
        """Return what has failed after an event."""

    def drain(self, node: str, limit_s: float) -> None:
        """Drain a node and wait until it is empty."""

    def uncordon(self, node: str) -> None:
        """Let a node have VMs again."""


class ApiFleet:
    """A fleet through the API, with one connection."""

    def __init__(self, client: Client, away_s_max: float = AWAY_S_MAX) -> None:
        self._client, self._away_s_max = client, away_s_max
        self._lock = threading.Lock()
        self._nodes: dict[str, NodeSeen] = {}
        self._listed_at = float("-inf")

    def _ask(self, call: Callable[[Client], T]) -> T:
        """Ask the API, again while no server answers. Raises StepFailed."""
        deadline = time.monotonic() + self._away_s_max
        while True:
            try:
                with self._lock:
                    return call(self._client)
            except (Unreachable, OSError) as error:
                said = str(error)
            except ApiError as error:
                if error.status < 500 and error.status != TOO_MANY_REQUESTS:
                    raise StepFailed(f"the API refused: {error}") from None
                said = str(error)
            if time.monotonic() > deadline:
                raise StepFailed(f"the API has not answered for {self._away_s_max:.0f} s: {said}")
            time.sleep(RETRY_S)

    def nodes(self) -> dict[str, NodeSeen]:
        def listed(client: Client) -> dict[str, NodeSeen]:
            if time.monotonic() - self._listed_at > FRESH_S:
                self._nodes = {str(node["name"]): node_seen(node) for node in client.list("nodes")}
                self._listed_at = time.monotonic()
            return self._nodes

        return self._ask(listed)

    def guests(self) -> dict[str, GuestSeen]:
        return self._ask(lambda client: {str(vm["id"]): guest_seen(vm) for vm in client.list("vms")})

    def newest_event(self) -> int:
        return self._ask(lambda client: next((int(event["id"]) for event in client.list("events", limit=1)), 0))

    def failures_since(self, event: int) -> list[ActionFailed]:
        return self._ask(lambda client: failures(client.list("events", limit=EVENTS_MAX), event))

    def drain(self, node: str, limit_s: float) -> None:
        self._ask(lambda client: client.act("nodes", node, "drain", {"time_limit_s": max(10, int(limit_s))}))
        deadline = time.monotonic() + limit_s
        while True:
            drain = self._ask(lambda client: next(iter(client.list("drains", limit=1, node=node)), None))
            if drain is None or drain["phase"] in DRAIN_ENDED:
                break
            if time.monotonic() > deadline:
                raise StepFailed(f"{node} is not empty after {limit_s:.0f} s; see: novacron node drains --node {node}")
            time.sleep(RETRY_S)
        if drain is not None and drain["phase"] != "drained":
            raise StepFailed(f"{node}: its drain has {drain['phase']}: {drain['reason']}")

    def uncordon(self, node: str) -> None:
        self._ask(lambda client: client.act("nodes", node, "uncordon", {"bring_back": True}))


def node_seen(node: Object) -> NodeSeen:
    """Return what the API's answer says of a node."""
    status = node["status"]
    inventory = status["inventory"] or {}
    return NodeSeen(
        bool(status["ready"]), str(inventory.get("agent_version", "")), str(status["reason"]),
        cordoned=bool(node["spec"]["cordoned"]),
    )  # fmt: skip


def guest_seen(vm: Object) -> GuestSeen:
    """Return what the API's answer says of a VM."""
    status, spec = vm["status"], vm["spec"]
    halted = status.get("halted_at_start")
    starts = int(spec["starts"])
    return GuestSeen(
        str(vm["name"]), str(vm["node"] or ""), int(status["crashes"]), str(status["state"]),
        should_run=spec["power"] == "running" and (halted is None or starts > int(halted)), starts=starts,
        pid=int(status["pid"]), epoch=int(vm["epoch"]),
    )  # fmt: skip


def failures(events: Iterable[Object], after: int) -> list[ActionFailed]:
    """Return what failed after an event; ``events`` are the newest first."""
    failed = []
    for event in events:
        if int(event["id"]) <= after:
            break
        if str(event["reason"]).endswith(FAILED):
            failed.append(ActionFailed(*(str(event[field]) for field in ("object", "name", "reason", "message"))))
    return failed
