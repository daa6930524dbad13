"""Work on what the server names, each object in a task of its own; what it names no more is given up and cleared."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

from novacron.supervise import guard

T = TypeVar("T")


class NamedWork(Generic[T]):
    """``work`` runs once for each object that is named and not worked on; ``clear`` runs, in a thread, after each
    statement of the server: it removes the files of all objects but those of which its argument says that they are
    kept. An object that is no longer named is cleared after its task has ended, never beside it."""

    def __init__(
        self, kind: str, work: Callable[[T], Awaitable[None]], clear: Callable[[Callable[[str], bool]], None]
    ) -> None:
        self._kind, self._work, self._clear = kind, work, clear
        self._named: Mapping[str, T] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._clearing = self._clear_due = False
        self._given_up: set[str] = set()
        """Objects whose tasks were cancelled, and have not ended yet."""

    def get(self, id: str) -> T | None:
        """Return what the server said last of an object, or None if it does not name it."""
        return self._named.get(id)

    def tell(self, named: Mapping[str, T], tasks: asyncio.TaskGroup) -> None:
        """Take all objects by id. ``tasks`` owns the work on them."""
        self._named = named
        for id, task in self._running.items():
            if id not in named:
                task.cancel()
                self._given_up.add(id)
        for id in named:
            if id not in self._running:
                self._start(id, tasks)
        self._clear_due = True
        if not self._clearing:
            self._clearing = True
            tasks.create_task(guard(f"{self._kind}s-clear", self._clear_others), name=f"{self._kind}s-clear")

    def _start(self, id: str, tasks: asyncio.TaskGroup) -> None:
        work = functools.partial(self._work, self._named[id])
        task = self._running[id] = tasks.create_task(guard(self._kind, work), name=f"{self._kind}-{id}")
        task.add_done_callback(functools.partial(self._end, id, tasks))

    def _end(self, id: str, tasks: asyncio.TaskGroup, _task: asyncio.Task[None]) -> None:
        del self._running[id]
        given_up = id in self._given_up
        self._given_up.discard(id)
        if given_up and id in self._named:  # it was named again before it had ended
            with contextlib.suppress(RuntimeError):  # the agent ends
                self._start(id, tasks)

    async def _clear_others(self) -> None:
        try:
            while self._clear_due:
                self._clear_due = False
                given_up = [task for id, task in self._running.items() if id not in self._named]
                if given_up:
                    await asyncio.wait(given_up)
                await asyncio.to_thread(self._clear, self._is_kept)
        finally:
            self._clearing = False

    def _is_kept(self, id: str) -> bool:
        return id in self._named or id in self._running
