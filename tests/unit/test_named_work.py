"""Work on what the server names: begun once, given up when it is named no more, and cleared whenever that happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from novacron.agent.images.named_work import NamedWork


class Files:
    """Each object's work writes a file, and once more when it ends."""

    def __init__(self) -> None:
        self.made = {"gone", "kept"}
        """As an earlier agent left it."""
        self.begun, self.end = asyncio.Event(), asyncio.Event()

    async def work(self, id: str) -> None:
        self.begun.set()
        try:
            await self.end.wait()
        finally:
            self.made.add(id)

    def clear(self, is_kept: Callable[[str], bool]) -> None:
        self.made = {id for id in self.made if is_kept(id)}


@pytest.mark.parametrize("begun", [False, True], ids=["in one reading", "begun"])
def test_what_is_given_up_is_cleared_after_its_work_has_ended(begun: bool) -> None:
    async def run() -> set[str]:
        files = Files()
        named = NamedWork("export", files.work, files.clear)
        async with asyncio.TaskGroup() as tasks:
            named.tell({"gone": "gone", "kept": "kept"}, tasks)
            if begun:
                await files.begun.wait()
            named.tell({"kept": "kept"}, tasks)
            assert named.get("gone") is None and named.get("kept") == "kept"
            await files.begun.wait()
            files.end.set()
        return files.made

    assert asyncio.run(run()) == {"kept"}


def test_a_defect_in_one_is_not_begun_again_until_it_is_named_again() -> None:
    begun: list[str] = []

    async def fail(id: str) -> None:
        begun.append(id)
        raise RuntimeError(id)

    async def run() -> None:
        named = NamedWork("export", fail, lambda _: None)
        for _ in range(2):
            async with asyncio.TaskGroup() as tasks:
                named.tell({"a": "a", "b": "b"}, tasks)

    asyncio.run(run())
    assert begun == ["a", "b"] * 2


async def test_what_is_named_again_before_its_given_up_work_has_ended_is_begun_again() -> None:
    begun, clearing, again = list[str](), asyncio.Event(), asyncio.Event()

    async def work(id: str) -> None:
        begun.append(id)
        if len(begun) == 2:
            again.set()
        try:
            await asyncio.Event().wait()
        finally:
            await clearing.wait()

    named = NamedWork("export", work, lambda _: None)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            named.tell({"a": "a"}, tasks)
            await asyncio.sleep(0)
            named.tell({}, tasks)
            await asyncio.sleep(0)
            named.tell({"a": "a"}, tasks)
            assert begun == ["a"], "never two at once"
            clearing.set()
            await again.wait()
            named.tell({}, tasks)
    assert begun == ["a", "a"]
