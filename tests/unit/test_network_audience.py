"""Who is woken when something of a network changes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from novacron.server.network_audience import Wiring
from novacron.server.session import Session
from novacron.store.feed import Change


def session(*networks: str) -> Session:
    woken = asyncio.Event()
    return cast(Session, SimpleNamespace(networks=frozenset(networks), woken=woken, look_anew=woken.set))


def woken(wiring: Wiring, sessions: dict[str, Session], kind: str, key: str, body: dict[str, Any] | None) -> set[str]:
    wiring.changed(Change(1, kind, key, body), sessions)
    found = {name for name, one in sessions.items() if cast(SimpleNamespace, one).woken.is_set()}
    for one in sessions.values():
        cast(SimpleNamespace, one).woken.clear()
    return found


def vm(node: str, *networks: str, state: str = "running") -> dict[str, Any]:
    nics = [{"network": name} for name in networks]
    return {"name": "web", "node": node, "spec": {"nics": nics}, "status": {"state": state}}


def test_only_those_who_have_a_network_hear_of_it_and_only_what_matters_to_them() -> None:
    wiring, sessions = Wiring(), {"a": session("lan"), "b": session("lan", "dmz"), "c": session(), "d": session("dmz")}
    assert woken(wiring, sessions, "vm", "vm-1", vm("a", "lan")) == {"a", "b"}
    assert woken(wiring, sessions, "vm", "vm-1", vm("a", "lan", state="paused")) == set()
    assert woken(wiring, sessions, "vm", "vm-1", vm("b", "lan")) == {"a", "b"}, "it has moved"
    assert woken(wiring, sessions, "vm", "vm-2", vm("c")) == set()
    assert woken(wiring, sessions, "migration", "mig-1", {"vm": "vm-1", "phase": "preparing"}) == {"a", "b"}
    assert woken(wiring, sessions, "migration", "mig-1", {"vm": "vm-1", "phase": "preparing"}) == set()
    assert woken(wiring, sessions, "migration", "mig-2", {"vm": "old", "phase": "pending"}) == {"a", "b", "d"}
    assert woken(wiring, sessions, "vm", "vm-3", vm("d", "lan")) == {"a", "b", "d"}, "it has not had the network yet"
    assert woken(wiring, sessions, "vm", "vm-1", None) == {"a", "b"}
    assert woken(wiring, sessions, "network", "lan", {"gateway": "c"}) == {"a", "b", "c"}, "its gateway, too"
    assert woken(wiring, sessions, "security-group", "web", {}) == {"a", "b", "d"}
    assert woken(wiring, sessions, "volume", "vol-1", {}) == set()


def test_a_node_that_is_reached_otherwise_concerns_all() -> None:
    wiring, sessions = Wiring(), {"a": session("lan"), "c": session()}

    def node(site: str, ready: bool = True) -> dict[str, Any]:
        return {"spec": {"site": site}, "status": {"ready": ready, "inventory": {"dwcp_endpoint": "h:1"}}}

    assert woken(wiring, sessions, "node", "b", node("x")) == {"a"}
    assert woken(wiring, sessions, "node", "b", node("x", ready=False)) == set()
    assert woken(wiring, sessions, "node", "b", node("y")) == {"a"}
