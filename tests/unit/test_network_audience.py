"""Who is woken when something of a network changes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from novacron.server.network_audience import NetworkAudience
from novacron.server.session import NodeSession
from novacron.store.feed import Change


def session(*networks: str) -> NodeSession:
    woken = asyncio.Event()
    return cast(NodeSession, SimpleNamespace(networks=frozenset(networks), woken=woken, look_anew=woken.set))


def woken(
    audience: NetworkAudience, sessions: dict[str, NodeSession], kind: str, key: str, body: dict[str, Any] | None
) -> set[str]:
    audience.changed(Change(1, kind, key, body), sessions)
    names = {name for name, each in sessions.items() if cast(SimpleNamespace, each).woken.is_set()}
    for each in sessions.values():
        cast(SimpleNamespace, each).woken.clear()
    return names


def vm(node: str, *networks: str, state: str = "running") -> dict[str, Any]:
    nics = [{"network": name} for name in networks]
    return {"name": "web", "node": node, "spec": {"nics": nics}, "status": {"state": state}}


def test_only_members_of_a_network_hear_of_its_relevant_changes() -> None:
    audience, sessions = (
        NetworkAudience(),
        {"a": session("lan"), "b": session("lan", "dmz"), "c": session(), "d": session("dmz")},
    )
    assert woken(audience, sessions, "vm", "vm-1", vm("a", "lan")) == {"a", "b"}
    assert woken(audience, sessions, "vm", "vm-1", vm("a", "lan", state="paused")) == set()
    assert woken(audience, sessions, "vm", "vm-1", vm("b", "lan")) == {"a", "b"}, "it has moved"
    assert woken(audience, sessions, "vm", "vm-2", vm("c")) == set()
    assert woken(audience, sessions, "migration", "mig-1", {"vm": "vm-1", "phase": "preparing"}) == {"a", "b"}
    assert woken(audience, sessions, "migration", "mig-1", {"vm": "vm-1", "phase": "preparing"}) == set()
    assert woken(audience, sessions, "migration", "mig-2", {"vm": "old", "phase": "pending"}) == {"a", "b", "d"}
    assert woken(audience, sessions, "vm", "vm-3", vm("d", "lan")) == {"a", "b", "d"}, "it has not had the network yet"
    assert woken(audience, sessions, "vm", "vm-1", None) == {"a", "b"}
    assert woken(audience, sessions, "network", "lan", {"gateway": "c"}) == {"a", "b", "c"}, "its gateway, too"
    assert woken(audience, sessions, "security-group", "web", {}) == {"a", "b", "d"}
    assert woken(audience, sessions, "volume", "vol-1", {}) == set()


def test_a_node_with_another_endpoint_affects_all_networks() -> None:
    audience, sessions = NetworkAudience(), {"a": session("lan"), "c": session()}

    def node(site: str, ready: bool = True) -> dict[str, Any]:
        return {"spec": {"site": site}, "status": {"ready": ready, "inventory": {"dwcp_endpoint": "h:1"}}}

    assert woken(audience, sessions, "node", "b", node("x")) == {"a"}
    assert woken(audience, sessions, "node", "b", node("x", ready=False)) == set()
    assert woken(audience, sessions, "node", "b", node("y")) == {"a"}
    assert woken(audience, sessions, "node", "b", None) == {"a"}, "its frames are refused from now on"
