"""Which nodes get new desired state when something changes."""

from __future__ import annotations

from typing import Any, cast

import pytest

from novacron.server.desired_state import DesiredStateSender
from novacron.server.session import NodeSession
from novacron.store.feed import Change


def sender() -> tuple[DesiredStateSender, dict[str, NodeSession]]:
    none = cast(Any, None)
    sessions = {name: NodeSession(name, none) for name in ("a", "b", "c")}
    return DesiredStateSender(none, sessions, lambda _: b""), sessions


@pytest.mark.parametrize(
    ("change", "woken"),
    [
        (Change(1, "import", "import-1", {"node": "a"}), {"a"}),
        (Change(1, "volume", "volume-1", {"node": "b"}), {"b"}),
        (Change(1, "volume", "volume-1", None), set()),
        (Change(1, "export", "export-1", {"node": "c"}), {"c"}),
        (Change(1, "export", "export-1", None), {"a", "b", "c"}),
        (Change(1, "import", "import-1", {"node": "gone"}), set()),
        (Change(1, "migration", "migration-1", {"source": "a", "target": "c", "vm": "vm-1", "phase": "pending"}),
         {"a", "c"}),
        (Change(1, "migration", "migration-1", None), set()),
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
