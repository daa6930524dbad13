"""Work on what the server names, each object in a task of its own; what it names no more is given up and cleared."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Generic, TypeVar

from novacron.supervise import guard

T = TypeVar("T")


class NamedWork(Generic[T]):
    """``work`` runs once for each object that is named and not worked on; ``clear`` runs, in a thread, after each
    statement of the server: it removes the files of all objects but those of which its argument says that they are
    kept. An object that is no longer named is cleared after its task has ended, never beside it.

    An object's name is its id, or begins with it and a dot."""

    def __init__(
        self, kind: str, work: Callable[[T], Awaitable[None]], clear: Callable[[Callable[[str], bool]], None]
    ) -> None:
        self._kind, self._work, self._clear = kind, work, clear
        self._named: Mapping[str, T] = {}
        self._unreadable: frozenset[str] = frozenset()
        """Ids of objects of which the server can't tell how they are to be."""
        self._running: dict[str, asyncio.Task[None]] = {}
        self._clearing = self._clear_due = False
        self._given_up: set[asyncio.Task[None]] = set()
        """Tasks that were cancelled, and have not ended yet."""

    def get(self, id: str) -> T | None:
        """Return what the server said last of an object, or None if it does not name it."""
        return self._named.get(id)

    def tell(self, named: Mapping[str, T], tasks: asyncio.TaskGroup, unreadable: Collection[str] = ()) -> None:
        """Take all objects by name. ``tasks`` owns the work on them. Of those whose ids are ``unreadable``, what was
        said last holds."""
        self._unreadable = frozenset(unreadable)
        as_before = {name: object_ for name, object_ in self._named.items() if self._is_unreadable(name)}
        self._named = named = {**as_before, **named}
        for id, task in self._running.items():
            if id not in named:
                task.cancel()
                self._given_up.add(task)
        for id in named:
            running = self._running.get(id)
            if running is None or running in self._given_up:  # which is named again before it has ended
                self._start(id, running, tasks)
        self._clear_due = True
        if not self._clearing:
            self._clearing = True
            tasks.create_task(guard(f"{self._kind}s-clear", self._clear_others), name=f"{self._kind}s-clear")

    def _start(self, id: str, before: asyncio.Task[None] | None, tasks: asyncio.TaskGroup) -> None:
        work = functools.partial(self._work_after, before, self._named[id])
        task = self._running[id] = tasks.create_task(guard(self._kind, work), name=f"{self._kind}-{id}")
        task.add_done_callback(functools.partial(self._end, id))

    async def _work_after(self, before: asyncio.Task[None] | None, object_: T) -> None:
        if before is not None:
            await asyncio.wait({before})
        await self._work(object_)

    def _end(self, id: str, task: asyncio.Task[None]) -> None:
        self._given_up.discard(task)
        if self._running.get(id) is task:
            del self._running[id]

    async def _clear_others(self) -> None:
        try:
            while self._clear_due:
                self._clear_due = False
                if self._given_up:
                    await asyncio.wait(set(self._given_up))
                await asyncio.to_thread(self._clear, self._is_kept)
        finally:
            self._clearing = False

    def _is_kept(self, id: str) -> bool:
        return id in self._named or id in self._running or self._is_unreadable(id)

    def _is_unreadable(self, name: str) -> bool:
        return name.partition(".")[0] in self._unreadable
