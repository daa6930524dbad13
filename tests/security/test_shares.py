"""One tenant takes no more than their share of what all use."""

from __future__ import annotations

import asyncio

import pytest

from novacron.api.edge.slots import Full, SlotLimits, Slots
from novacron.model import limits
from novacron.model.errors import Unavailable
from novacron.model.image import ImportSpec, Source
from novacron.model.project import Quota
from novacron.store import imports, projects
from novacron.store.database import Database
from tests.support.stored_fleet import add_node


async def test_a_project_takes_half_of_a_node_s_imports_and_no_more(database: Database) -> None:
    """Also when it asks for all of them at once."""
    async with database.transaction() as connection:
        await add_node(connection, "host-a")
        for name in ("greedy", "modest"):
            await projects.create(connection, projects.NewProject(name, "", Quota(), False), "test")

    async def begin(project: str, name: str) -> bool:
        spec = ImportSpec(name, Source.UPLOAD, "", 1024)
        try:
            async with database.transaction() as connection:
                await imports.create(connection, project, spec, "host-a", "test")
        except Unavailable:
            return False
        return True

    begun = await asyncio.gather(*(begin("greedy", f"greedy-{number}") for number in range(20)))
    assert sum(begun) == limits.IMPORTS_PER_PROJECT_MAX < limits.IMPORTS_PER_NODE_MAX
    assert await begin("modest", "modest"), "there is room for others"


def test_consoles_of_one_project_leave_room_for_others() -> None:
    slots = Slots(SlotLimits(4, 2, 1))
    with slots.taken_for("greedy on host-a", ""), slots.taken_for("greedy on host-a", ""):
        with pytest.raises(Full) as full, slots.taken_for("greedy on host-a", ""):
            pass
        assert full.value.own
        with slots.taken_for("greedy on host-b", ""), slots.taken_for("modest on host-a", ""):
            with pytest.raises(Full) as full, slots.taken_for("other", ""):
                pass
            assert not full.value.own
    assert slots.taken == 0
    assert limits.CONSOLES_PER_PROJECT_MAX < limits.CONSOLE_CHANNELS_PER_NODE_MAX
