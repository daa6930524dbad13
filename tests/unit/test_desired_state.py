"""Which nodes get new desired state when something changes."""

from __future__ import annotations

from typing import Any, cast

import pytest

from novacron.model.ownership import Order, OrderKind
from novacron.server.desired_state import DesiredStateSender
from novacron.server.session import NodeSession
from novacron.store.feed import Change
from novacron.wire import messages as wire
from tests.support.project_secrets import PlainSecrets


def sender() -> tuple[DesiredStateSender, dict[str, NodeSession]]:
    none = cast(Any, None)
    sessions = {name: NodeSession(name, none) for name in ("a", "b", "c")}
    return DesiredStateSender(none, sessions, PlainSecrets()), sessions


@pytest.mark.parametrize(
    ("change", "woken"),
    [
        (Change(1, "import", "import-1", {"node": "a"}), {"a"}),
        (Change(1, "volume", "volume-1", {"node": "b"}), {"b"}),
        (Change(1, "volume", "volume-1", None), set()),
        (Change(1, "export", "export-1", {"node": "c"}), {"c"}),
        (Change(1, "export", "export-1", None), {"a", "b", "c"}),
        (Change(1, "backup", "backup-1", {"node": "c"}), {"c"}),
        (Change(1, "backup", "backup-1", None), {"a", "b", "c"}),
        (Change(1, "import", "import-1", {"node": "gone"}), set()),
        (Change(1, "migration", "migration-1", {"source": "a", "target": "c", "vm": "vm-1", "phase": "pending"}),
         {"a", "c"}),
        (Change(1, "migration", "migration-1", None), set()),
        (Change(1, "unreconciled-vm", "vm-1.0f", {"node": "a"}), {"a", "b", "c"}),
        (Change(1, "unreconciled-vm", "vm-1.0f", None), {"a", "b", "c"}),
        (Change(1, "project", "project-1", {"name": "p"}), set()),
    ],
)  # fmt: skip
async def test_a_change_is_sent_only_to_the_nodes_it_concerns(change: Change, woken: set[str]) -> None:
    desired_state, sessions = sender()
    desired_state.changed(change)
    assert {name for name, session in sessions.items() if session.sent_state.anew} == woken


async def test_a_changed_vm_is_held_by_its_owner_from_then_on() -> None:
    desired_state, sessions = sender()
    body = {"node": "b", "name": "web", "spec": {}}
    desired_state.changed(Change(1, "vm", "vm-1", body))
    assert sessions["b"].held == {"vm-1"}
    assert not any(session.sent_state.anew for session in sessions.values()), "it is read for all nodes at once"
    desired_state.let_go(sessions["b"], "vm-1")
    desired_state.changed(Change(2, "vm", "vm-1", None))
    assert sessions["b"].held == set()


def test_after_an_interruption_of_the_feed_a_node_is_told_everything_as_of_a_new_database() -> None:
    """A node answers a whole ``desired`` with the VMs that it does not name: the database may be an older one."""
    desired_state, sessions = sender()
    state, statement = sessions["a"].sent_state, wire.Statement("vm-1", Order(OrderKind.OWN, 1))
    state.begun = True
    assert state.differ([statement], whole=True) and not state.differ([statement], whole=True)
    desired_state.resync()
    assert not state.begun and state.anew
    assert state.differ([statement], whole=True) == (statement,)


def test_nodes_of_a_replica_are_woken_by_what_they_are_told_of_it_and_not_by_each_point() -> None:
    desired_state, sessions = sender()

    def woken(change: Change) -> set[str]:
        for session in sessions.values():
            session.sent_state.anew = False
        desired_state.changed(change)
        return {name for name, session in sessions.items() if session.sent_state.anew}

    vm = {"node": "a", "name": "web", "migration": None, "clone_of": None, "spec": {"image": "disk", "disk_mib": 1}}
    replica = {"phase": "following", "rpo_s": 5, "points_kept": 3, "points": [], "vm": "vm-1", "node": "b"}
    woken(Change(1, "vm", "vm-1", vm))
    assert woken(Change(2, "replica", "r", replica)) == {"a", "b"}
    assert woken(Change(3, "replica", "r", {**replica, "points": [1]})) == {"a", "b"}, "it has one now"
    assert woken(Change(4, "replica", "r", {**replica, "points": [1, 2]})) == set()
    assert woken(Change(5, "vm", "vm-1", {**vm, "status": {}})) == set()
    assert woken(Change(6, "vm", "vm-1", {**vm, "spec": {"image": "disk", "disk_mib": 2}})) == {"a", "b"}
    assert woken(Change(7, "vm", "vm-1", {**vm, "node": "b"})) == {"a", "b"}
    assert woken(Change(8, "replica", "r", None)) == {"b"}
