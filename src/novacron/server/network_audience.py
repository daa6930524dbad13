"""Which nodes have to know when something of a network changes: more than those that a change names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from novacron.server.session import NodeSession
from novacron.store.feed import Change


class _Wired(NamedTuple):
    """What of a VM matters to others in its networks."""

    name: str
    node: str | None
    networks: frozenset[str]
    nics: str


class NetworkAudience:
    """What is known of VMs, nodes and migrations since this process began: most of their changes concern no network."""

    def __init__(self) -> None:
        self._vms: dict[str, _Wired] = {}
        self._reached: dict[str, tuple[Any, ...]] = {}
        """How nodes are reached by others."""
        self._phases: dict[str, str] = {}
        """Of migrations."""

    def changed(self, change: Change, sessions: Mapping[str, NodeSession]) -> None:
        """Wake the sessions of nodes that have a network of which something has changed."""
        if change.kind == "network" and change.body is not None and change.body["gateway"] in sessions:
            sessions[change.body["gateway"]].look_anew()  # it may not have it yet
        names = self._networks(change)
        if names is not None and not names:
            return
        if change.kind == "vm" and change.body is not None and change.body["node"] in sessions:
            sessions[change.body["node"]].look_anew()  # nor that one
        for session in sessions.values():
            if session.networks if names is None else session.networks & names:
                session.look_anew()

    def _networks(self, change: Change) -> frozenset[str] | None:
        """Return the networks that a change concerns; None: it is not known which."""
        body, none = change.body, frozenset[str]()
        match change.kind:
            case "vm" if body is not None:
                nics = body["spec"].get("nics") or ()
                now = _Wired(body["name"], body["node"], frozenset(nic["network"] for nic in nics), str(nics))
                before, self._vms[change.key] = self._vms.get(change.key), now
                return none if before == now else now.networks
            case "vm":
                return self._vms.pop(change.key).networks if change.key in self._vms else None
            case "migration" if body is not None:
                earlier, self._phases[change.key] = self._phases.get(change.key), body["phase"]
                if earlier == body["phase"]:
                    return none
                return self._vms[body["vm"]].networks if body["vm"] in self._vms else None
            case "node" if body is not None:
                has = body["status"]["inventory"] or {}
                reached = body["spec"]["site"], has.get("dwcp_endpoint"), has.get("wireguard"), has.get("addresses")
                was, self._reached[change.key] = self._reached.get(change.key), reached
                return none if was == reached else None
            case "migration":
                self._phases.pop(change.key, None)
            case "node":  # it was removed: no other node may take its frames any more
                self._reached.pop(change.key, None)
                return None
            case "network":
                return frozenset({change.key})
            case "security-group" | "floating-address" | "forward":
                return None
        return none
